"""The end of a run: samples of what the model says, the last line of the metrics, the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thalweg.models.generate import samples
from thalweg.planner.assumptions import CLOSING_SECONDS
from thalweg.reports import write_report

if TYPE_CHECKING:
    from thalweg.training.trainer import Trainer

SAMPLE_TOKENS = 64
PROMPT_TOKENS = 12  # or a third of the context, where that is less
PROMPTS = 3


class Ending:
    """Writes the last line of the metrics, which is what makes a run a finished one."""

    def finish(self, trainer: Trainer) -> None:
        clock = trainer.clock
        if clock.last and trainer.parallel.main:
            trainer.run.append(
                {"event": "finish", "step": clock.step, "tokens": clock.tokens, "seconds": clock.seconds}
            )


class Closing:
    """Writes samples.json and report.html; comes last among the callbacks."""

    def __init__(self, held_out: Any, tokenizer: Any) -> None:
        self.held_out, self.tokenizer = held_out, tokenizer

    def setup(self, trainer: Trainer) -> None:
        trainer.clock.reserve["closing"] = CLOSING_SECONDS

    def finish(self, trainer: Trainer) -> None:
        # Under FSDP2 generation would need every rank at every token; the samples are left out there.
        if not trainer.parallel.shard and trainer.clock.last and trainer.parallel.main:
            trainer.run.write_json("samples.json", self._samples(trainer))
        if trainer.parallel.main:
            write_report(trainer.run.folder)

    def _samples(self, trainer: Trainer) -> list[dict[str, Any]]:
        offsets, _ = self.held_out.documents()
        context = trainer.plan["context"]
        length = min(PROMPT_TOKENS, context // 3)
        starts = [start for start in offsets[:PROMPTS].tolist() if start + length <= self.held_out.token_count]
        prompts = [self.tokenizer.decode(self.held_out.read(start, start + length)) for start in starts]
        new = min(SAMPLE_TOKENS, context - length)
        texts = samples(trainer.model, self.tokenizer, prompts, max_new_tokens=new, temperature=0.8, seed=trainer.seed)
        return [
            {"step": trainer.clock.step, "prompt": prompt, "text": text}
            for prompt, text in zip(prompts, texts, strict=True)
        ]
