from pathlib import Path

from support.study.tiny_models import save_tiny_model

from grandrounds.deploy.bench.data import DataBench, data_line


def test_notes_are_prepared_opened_and_drawn_beside_the_tokenizer_alone(tmp_path: Path) -> None:
    figures = DataBench(base=save_tiny_model(tmp_path), notes=200, words=20, max_tokens=16).run()
    assert figures["tokens"] >= 200 * 20 and figures["bytes_read"] > 200 * 20
    assert all(value > 0 for value in figures.values())
    assert "200 notes" in data_line(figures)
