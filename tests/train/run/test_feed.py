"""Batches that are made ahead: those of direct calls, errors with their message, no thread left behind."""

import threading

import pytest
import torch

from uhr.train.data.reader import DataFault, EncodedData
from uhr.train.run.checkpoints.checkpoint import steps
from uhr.train.run.feed import Phases, feed, load_batch
from uhr.train.run.trainer import Trainer, train


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_are_those_of_direct_calls_in_the_same_order(job_of):
    job, cpu = job_of("phases.main.steps=9"), torch.device("cpu")
    phases, ahead = Phases(job, cpu), feed(job, cpu, 2)
    for step in range(2, 9):
        expected, found = load_batch(job, phases, step), ahead.take(step)
        assert found.turn == expected.turn
        assert found.uris == expected.uris
        for name in ("data", "noise", "sigma"):
            assert torch.equal(getattr(found.batch, name), getattr(expected.batch, name))
        for name, texts in expected.batch.condition.texts.items():
            assert torch.equal(found.batch.condition.texts[name], texts)
    ahead.close()


def test_a_damaged_file_stops_the_run_at_its_step_with_its_message_and_no_thread_stays(job_of, monkeypatch):
    job = job_of("phases.main.steps=9", "runtime.checkpoint_every=1")
    real, calls = EncodedData.read, []

    def read(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise DataFault("1024x1024-00000.parquet, row group 0: bad page", "copy the file again")
        return real(self, *args)

    monkeypatch.setattr(EncodedData, "read", read)
    with pytest.raises(DataFault, match="row group 0: bad page: copy the file again"):
        train(job)
    # the three steps before it are done and saved
    assert steps(job.out)[-1] == 3
    assert not threads()


def test_a_run_that_ends_leaves_no_thread_and_a_trainer_can_go_on_after_it_is_closed(job_of):
    trainer = Trainer(job_of("phases.main.steps=4"))
    trainer.step()
    assert threads()
    trainer.close()
    assert not threads()
    assert trainer.step()["step"] == 2
    trainer.run()
    assert not threads()
