"""What the page says of an alignment is what the figures allow."""

import pytest

from sklearn_ape.app._model import Alignment, Recall
from sklearn_ape.app._ui import describe_alignment


def told(before, after, n_held_out, with_head=False):
    recall = [Recall("before", before, 90), Recall("after", after, 90)]
    alignment = Alignment(None, "kernel", 500, n_held_out, recall, "", with_head)
    return describe_alignment(alignment, "Captions come from files.")


class TestAboutAlignment:
    @pytest.mark.parametrize(
        ("before", "after", "n", "verdict"),
        [
            (57, 55, 22, "within the standard error"),
            (57, 30, 100, "The initial aligner is better"),
            (30, 57, 100, "Your aligner is better"),
            (0, 0, 20, "within the standard error"),
            (100, 100, 20, "within the standard error"),
        ],
    )
    def test_a_difference_counts_beyond_its_standard_error(self, before, after, n, verdict):
        assert verdict in told(before, after, n)

    def test_the_table_has_chance_beside_both(self):
        text = told(20, 40, 50)
        for row in (
            "| before | 20 % | 90 % |",
            "| after | 40 % | 90 % |",
            "| chance | 2 % | 10 % |",
        ):
            assert row in text
        assert "fitted on all 500" in text

    def test_class_names_are_advised_to_those_who_left_them_out(self):
        assert "class names" in told(90, 10, 100)
        assert "class names" not in told(90, 10, 100, with_head=True)

    def test_going_back_is_said(self):
        assert "in use again" in describe_alignment(None, "")

    def test_names_of_files_are_text_in_the_remark(self):
        remark = "1 image was left out: '![x](http://evil/x.png)<b>', is empty"
        shown = describe_alignment(None, "") + describe_alignment(
            Alignment(None, "kernel", 5, 0, [], "", False), remark
        )
        assert r"\!" not in shown
        assert r"!\[x\](http\://evil/x\.png)\<b\>" in shown
