import shutil

import pyarrow.parquet as pq
import pytest
import torch

from uhr.base.errors import UserError
from uhr.train.data import rows as rows_module
from uhr.train.data.order import BucketPlan
from uhr.train.data.reader import DataFault, EncodedData


@pytest.fixture
def data(small_set):
    return EncodedData.open(small_set.folder)


def plan_of(data, **options):
    sizes = [bucket.rows for bucket in data.buckets]
    return BucketPlan(sizes, 2, seed=5, block=[bucket.group_rows for bucket in data.buckets], **options)


def test_each_image_keeps_its_latents_and_its_caption_however_often_it_is_shuffled(small_set, data):
    # latents and captions were cached in another order than they are visited in: none may swap partners
    alone = {
        rows.sample_ids[0]: rows
        for bucket, info in enumerate(data.buckets)
        for rows in (data.read(bucket, [row]) for row in range(info.rows))
    }
    assert len(alone) == 9
    for epoch in (0, 1):
        order = []
        for batch in plan_of(data).epoch(epoch):
            rows = data.read(batch.bucket, batch.rows)
            for i, sample in enumerate(rows.sample_ids):
                order.append(sample)
                assert rows.captions[i] == (small_set.manifest.row(sample)["caption"] or "")
                assert torch.equal(rows.mean[i], alone[sample].mean[0])
                assert torch.equal(rows.std[i], alone[sample].std[0])
                assert torch.equal(rows.texts["t5"][i], alone[sample].texts["t5"][0])
                assert torch.equal(rows.texts["pooled"][i], alone[sample].texts["pooled"][0])
        assert sorted(order) == sorted(alone)
    means = torch.stack([rows.mean[0].flatten()[:100] for rows in alone.values()])
    assert len({tuple(row.tolist()) for row in means}) == 9


def test_a_batch_has_the_shape_of_its_bucket(data, short_texts):
    for bucket, info in enumerate(data.buckets):
        rows = data.read(bucket, [0, 1])
        assert rows.mean.shape == (2, 16, info.height // 8, info.width // 8)
        assert rows.texts["t5"].shape == (2, short_texts.LENGTH, 32)
        assert rows.texts["pooled"].shape == (2, 32)


def test_the_empty_caption_is_there_for_dropout(data):
    empty, without = data.empty_texts(), [i for i, c in enumerate(_all(data).captions) if c == ""]
    assert len(without) == 1
    assert torch.equal(empty["t5"][0], _all(data).texts["t5"][without[0]])


def _all(data):
    (wide,) = (i for i, b in enumerate(data.buckets) if b.width > b.height)
    return data.read(wide, range(data.buckets[wide].rows))


def test_bounds_of_memory_change_nothing_and_hold(data, small_set, monkeypatch):
    monkeypatch.setattr(rows_module, "GROUPS", 1)
    monkeypatch.setattr(rows_module, "OPEN_FILES", 1)
    monkeypatch.setattr(rows_module, "MAPPED_BYTES", 0)
    tight = EncodedData.open(small_set.folder)
    for batch in plan_of(data).epoch(0):
        one, two = data.read(batch.bucket, batch.rows), tight.read(batch.bucket, batch.rows)
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(one.texts["t5"], two.texts["t5"])
        assert one.sample_ids == two.sample_ids
        assert one.captions == two.captions
        assert len(tight._stored._groups) == len(tight._stored._files) == 1


@pytest.mark.parametrize(
    "form",
    [
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    ],
)
@pytest.mark.parametrize("bound", [1 << 30, 1])
def test_files_that_another_program_wrote_anew_have_the_same_values(
    data, small_set, tmp_path, monkeypatch, form, bound
):
    monkeypatch.setattr(rows_module, "DECODED_BYTES", bound)
    other = tmp_path / "other"
    shutil.copytree(small_set.folder, other)
    info = data.info.model_copy(deep=True)
    for part in [*info.texts.parts, *(part for bucket in info.buckets for part in bucket.parts)]:
        groups = info.buckets[0].group_rows
        pq.write_table(pq.read_table(other / part.path), other / part.path, row_group_size=groups, **form)
    read = EncodedData(other, info)
    for batch in plan_of(data).epoch(0):
        one, two = data.read(batch.bucket, batch.rows), read.read(batch.bucket, batch.rows)
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(one.texts["t5"], two.texts["t5"])
        assert one.sample_ids == two.sample_ids
        if bound == 1:
            assert len(read._stored._groups) == 1


def test_a_batch_does_not_change_with_a_later_one(data):
    # batches have memory of their own: that of a batch that is still used is not given to another
    first = data.read(1, [0, 1])
    copies = [first.mean.clone(), first.std.clone(), first.texts["t5"].clone()]
    for _ in range(3):
        data.read(1, [2, 3]).mean.fill_(7)
    assert all(
        torch.equal(a, b) for a, b in zip(copies, [first.mean, first.std, first.texts["t5"]], strict=True)
    )
    again = data.read(1, [2, 3])
    assert not (again.mean == 7).all()


def test_a_damaged_page_names_shard_row_and_sample(small_set, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(small_set.folder, copy)
    data = EncodedData.open(copy)
    part = data.buckets[1].parts[0]
    victim = data.read(1, [3])
    file = copy / part.path
    contents = bytearray(file.read_bytes())
    at = contents.index(victim.mean[0].view(torch.uint8).numpy().tobytes())
    contents[at + 100] ^= 1
    file.write_bytes(contents)
    with pytest.raises(DataFault) as fault:
        EncodedData.open(copy).read(1, [3])
    message = str(fault.value)
    assert part.path in message
    assert "row group 0, row 3" in message
    assert victim.sample_ids[0] in message


@pytest.mark.parametrize("damage", ["page", "footer"])
def test_damaged_keys_of_captions_name_the_file(damage, small_set, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(small_set.folder, copy)
    data = EncodedData.open(copy)
    (part,) = data.info.texts.parts
    key = data.info.texts.empty_key.encode()
    file = copy / part.path
    contents = bytearray(file.read_bytes())
    at = contents.index(key) if damage == "page" else len(contents) - 1
    contents[at] ^= 255
    file.write_bytes(contents)
    with pytest.raises(DataFault, match=part.path):
        data.read(1, [3])


def test_training_refuses_a_folder_that_was_not_finished(tmp_path):
    (tmp_path / "units").mkdir()
    with pytest.raises(UserError, match="not fully encoded: run the same `uhr train encode` again"):
        EncodedData.open(tmp_path)
