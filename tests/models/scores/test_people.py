"""People by YOLOE and faces by the cascade: ultralytics' own boxes, and nothing behind the user's back."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.scores.clip_package import clip_importable
from uhr.models.scores.images import View
from uhr.models.scores.people import FaceCascade, People, PeopleDetector, _ultralytics, covered

from . import checkpoints

NAMES = ["person", "dog", "face"]
CERTAIN = {"min_confidence": 0.3, "size": 160}


@pytest.fixture(scope="session")
def yoloe(tmp_path_factory):
    """A random YOLOE checkpoint that is sure of something everywhere, and a text encoder."""
    return checkpoints.yoloe(tmp_path_factory.mktemp("yoloe"))


@pytest.fixture(scope="session")
def prompt_free(yoloe):
    """The same with its labels built in, and the prompts of promptable.pt in a file."""
    with clip_importable():
        from ultralytics.nn.text_model import MobileCLIPTS

    encoder = MobileCLIPTS(torch.device("cpu"), str(yoloe / "mobileclip_blt.ts"))
    model = _ultralytics().YOLOE(str(yoloe / "promptable.pt"))
    model.model.clip_model = encoder
    model.set_classes(NAMES, model.model.get_text_pe(NAMES, cache_clip_model=True))
    del model.model.clip_model
    model.save_prompt_embeddings(yoloe / "prompts.npz")
    free = _ultralytics().YOLOE(str(yoloe / "promptable.pt"))
    with contextlib.chdir(yoloe):  # where ultralytics looks for its text encoder
        free.set_vocab(free.get_vocab(NAMES), NAMES)
    free.save(str(yoloe / "prompt-free.pt"))
    return yoloe / "prompt-free.pt"


def expected(model, image, size, confidence, classes):
    """Boxes [n, 6] of ultralytics called directly for one image."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    (found,) = model.predict(bgr, imgsz=size, conf=confidence, rect=False, classes=classes, verbose=False)
    return found.boxes.data


def test_boxes_of_text_prompts_are_ultralytics_own(yoloe, prompt_free, images):
    people = People(("person", "face"), **CERTAIN)
    detector = PeopleDetector.load(yoloe / "promptable.pt", people, yoloe / "mobileclip_blt.ts")
    found = detector.score(images)
    model = _ultralytics().YOLOE(str(yoloe / "promptable.pt"))
    model.load_prompt_embeddings(yoloe / "prompts.npz")
    # the embeddings of the saved prompts are of three labels; those of person and face are the same
    model.set_classes(["person", "face"], model.model.pe[:, [0, 2]])
    counts = set()
    for image, boxes in zip(images, found["person_boxes"], strict=True):
        height, width = image.shape[:2]
        theirs = expected(model, image, 160, 0.3, [0, 1])
        assert len(boxes) == len(theirs)
        counts.add(len(boxes))
        for box, row in zip(boxes, theirs[theirs[:, 4].argsort(descending=True, stable=True)], strict=True):
            corners = [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
            scaled = [row[0] / width, row[1] / height, row[2] / width, row[3] / height]
            assert corners == pytest.approx([float(v) for v in scaled], abs=1e-4)
            assert box["confidence"] == pytest.approx(float(row[4]), abs=1e-5)
            assert box["label"] == ["person", "face"][int(row[5])]
    assert len(counts) > 1
    assert found["person_count"] == [len(boxes) for boxes in found["person_boxes"]]
    assert all(0 <= area <= 1.0001 for area in found["person_area"])
    assert detector.view == View(longest=160, filter="bilinear")


def test_an_image_is_scored_the_same_in_any_batch(yoloe, images):
    people = People(**CERTAIN)
    detector = PeopleDetector.load(yoloe / "promptable.pt", people, yoloe / "mobileclip_blt.ts")
    together = detector.score(images)
    for row, image in enumerate(images):
        alone = detector.score([image])
        assert alone["person_count"][0] == together["person_count"][row]
        assert alone["person_area"][0] == pytest.approx(together["person_area"][row], abs=1e-5)


def test_saved_prompts_and_prompt_free_models_need_no_text_encoder(yoloe, prompt_free, images):
    people = People(("person",), **CERTAIN)
    saved = PeopleDetector.load(yoloe / "promptable.pt", people, yoloe / "prompts.npz").score(images)
    free = PeopleDetector.load(prompt_free, people).score(images)
    promptable = _ultralytics().YOLOE(str(yoloe / "promptable.pt"))
    promptable.load_prompt_embeddings(yoloe / "prompts.npz")
    for found, model in ((saved, promptable), (free, _ultralytics().YOLOE(str(prompt_free)))):
        counts = [len(expected(model, image, 160, 0.3, [0])) for image in images]
        assert found["person_count"] == counts
        assert sum(counts) > 0
    assert {box["label"] for boxes in free["person_boxes"] for box in boxes} == {"person"}
    with pytest.raises(UserError, match="unknown label of the detector 'cat'"):
        PeopleDetector.load(prompt_free, People(("cat",)))


def test_confidence_and_area_decide_what_is_a_character(yoloe, prompt_free, images):
    def score(**options):
        people = People(("person",), **{**CERTAIN, **options})
        return PeopleDetector.load(yoloe / "promptable.pt", people, yoloe / "prompts.npz").score(images)

    found = score()
    assert sum(score(min_confidence=0.5)["person_count"]) < sum(found["person_count"])
    largest = [
        max((box["width"] * box["height"] for box in boxes), default=0.0) for boxes in found["person_boxes"]
    ]
    assert found["character"] == [area > 0 for area in largest]
    assert 0 < sum(found["character"]) < len(images)
    for least in (sorted(largest)[-3], sorted(largest)[-1] * 1.001):
        assert score(min_area=least)["character"] == [area >= least for area in largest]


def test_the_covered_area_counts_no_pixel_twice():
    def box(x, y, width, height):
        return {"x": x, "y": y, "width": width, "height": height}

    assert covered([]) == 0
    assert covered([box(0, 0, 0.5, 0.5), box(0, 0, 0.5, 0.5)]) == 0.25
    assert covered([box(0, 0, 0.5, 0.5), box(0.25, 0.25, 0.5, 0.5)]) == pytest.approx(0.4375)
    rng = np.random.default_rng(0)
    boxes = [
        box(*(int(v) for v in rng.integers(0, 60, 2)), *(int(v) for v in rng.integers(1, 40, 2)))
        for _ in range(9)
    ]
    mask = np.zeros((100, 100), bool)
    for each in boxes:
        mask[each["y"] : each["y"] + each["height"], each["x"] : each["x"] + each["width"]] = True
    assert covered(boxes) == pytest.approx(mask.sum())


def test_files_that_do_not_fit_are_one_line(yoloe, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="cannot be loaded"):
        PeopleDetector.load(tmp_path / "broken.pt")
    with pytest.raises(UserError, match="do not exist"):
        PeopleDetector.load(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match="cannot be loaded"):
        PeopleDetector.load(yoloe / "promptable.pt", text_encoder=tmp_path / "broken.pt")


def test_nothing_is_written_into_the_home_of_the_user(warm, tmp_path):
    """In a process of its own: what ultralytics does at its first import is done already in this one."""
    code = (
        "import sys\n"
        "assert 'ultralytics' not in sys.modules\n"
        "from uhr.models.scores.people import _ultralytics\n"
        "import os\n"
        "found = _ultralytics()\n"
        "from ultralytics.utils import ONLINE, AUTOINSTALL, USER_CONFIG_DIR\n"
        "print(ONLINE, AUTOINSTALL, USER_CONFIG_DIR, os.environ.get('YOLO_OFFLINE'))\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    environment.pop("YOLO_CONFIG_DIR", None)
    done = warm.run(["-c", code], env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    online, install, folder, left = done.stdout.split()[-4:]
    assert (online, install, left) == ("False", "False", "None")
    assert not Path(folder).exists()  # removed at the end
    assert not list(tmp_path.rglob("*"))


def test_the_cascade_counts_faces_and_says_nothing_of_people():
    from skimage import data

    cascade = FaceCascade.load()
    astronaut = cascade.view.of(np.ascontiguousarray(data.astronaut()))
    found = cascade.score([astronaut, np.full((300, 200, 3), 120, np.uint8), np.zeros((20, 20, 3), np.uint8)])
    assert list(found) == ["face_count"]
    assert 1 <= found["face_count"][0] <= 4
    assert found["face_count"][1:].tolist() == [0, 0]
    assert len(cascade.weights_hash) == 64
