"""Texts for which an encoder warns."""

import pytest


class TestTextsThatAreNotEnglish:
    """The packaged encoder returns features of any text, but was trained on English."""

    @pytest.mark.parametrize(
        "text", ["猫", "a photo of a 猫", "собака", "γάτα", "قطة", "고양이", "🐱"]
    )
    def test_packaged_encoder_warns(self, text, text_encoder):
        with pytest.warns(UserWarning, match=rf"1 text is not in the Latin alphabet \('{text}'\)"):
            text_encoder.transform([text, "a dog"])

    def test_texts_encoded_to_a_file_warn(self, text_encoder, tmp_path):
        with pytest.warns(UserWarning, match=r"1 text is not in the Latin alphabet \('猫'\)"):
            text_encoder.encode_to(tmp_path / "texts.npy", ["猫", "a dog"])

    @pytest.mark.parametrize("text", ["café", "ein Vogel, größer", "β-blocker", "20 °C", "I ❤ NY"])
    def test_latin_texts_do_not_warn(self, text, text_encoder, recwarn):
        text_encoder.transform([text, "ｆｕｌｌ"])
        assert not recwarn.list

    def test_a_few_of_many_texts_do_not_warn(self, text_encoder, recwarn):
        text_encoder.transform(["猫", *["a cat"] * 200])
        assert not recwarn.list
