import tarfile

import numpy as np
import pytest
from PIL import Image

from dlsr import InputError, SettingsError
from dlsr.bench.tasks import SHIPPED, SuiteTask, TaskOpener, chosen_tasks, draw, read_suite
from dlsr.images.sources import ImageDataset, ImageItem

TASK = """
[[tasks]]
name = "letters"
train = { images = "letters", keep = ["*/train/a/*"] }
test = { images = "letters", keep = ["*/test/*"], classes = ["a"] }
ood.others = { images = "letters.tar", keep = ["*/test/*"], without_classes = ["a"] }
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`letters`, a folder and the same as a tar: classes a, b and c, 6 training and 4 test images each."""
    root = tmp_path_factory.mktemp("tasks")
    for part, count in (("train", 6), ("test", 4)):
        for letter in "abc":
            folder = root / "letters" / part / letter
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{part}-{letter}{i}.png")
    lines = [f"{path.name}\t{path.parent.name * 2}\textra" for path in (root / "letters").rglob("*.png")]
    (root / "letters" / "classes.txt").write_text("\n".join(lines) + "\n")
    with tarfile.open(root / "letters.tar", "w") as tar:
        tar.add(root / "letters", "letters")
    return root


@pytest.fixture
def opened(data, tmp_path):
    """Write a task file, and open its first task."""

    def call(text):
        path = tmp_path / "tasks.toml"
        path.write_text(text)
        suite = read_suite(path)
        return TaskOpener(suite, data).open(suite.tasks[0])

    return call


def names(images):
    return [item.name.rsplit("/")[-1].removesuffix(".png") for item in images.items]


def test_images_are_chosen_by_globs_and_by_the_classes_of_their_folders(opened):
    task = opened(TASK)
    assert names(task.train) == [f"train-a{i}" for i in range(6)]
    assert names(task.test) == [f"test-a{i}" for i in range(4)]
    assert names(task.ood["others"]) == [f"test-{letter}{i}" for letter in "bc" for i in range(4)]
    assert (task.protocol, task.half) == ("native", None)


@pytest.mark.parametrize("source", ["letters", "letters.tar"])
def test_classes_may_come_from_a_file_of_annotations_and_a_list_may_have_a_name(opened, source):
    task = opened(f"""
        [classes]
        inside = ["aa", "b*"]
        [[tasks]]
        name = "annotated"
        half = "first"
        protocol = "matched"
        training_images = 7
        id = {{ images = "{source}", annotations = "classes.txt", classes = "inside", drop = ["*/test-a?.png"] }}
        ood.rest = {{ images = "{source}", annotations = "classes.txt", without_classes = "inside" }}
    """)
    assert (task.half, task.protocol) == ("first", "matched")
    assert set(names(task.ood["rest"])) == {f"train-c{i}" for i in range(6)} | {f"test-c{i}" for i in range(4)}
    expected = {f"train-{letter}{i}" for letter in "ab" for i in range(6)} | {f"test-b{i}" for i in range(4)}
    assert len(task.train) == 7
    assert set(names(task.train)) | set(names(task.test)) == expected
    assert len(task.test) == len(expected) - 7


def test_datasets_are_limited_at_random(opened):
    limited = 'training_images = 5\ntest_images = 3\nood.others = { limit = 6, images = "letters.tar", '
    task = opened(TASK.replace('ood.others = { images = "letters.tar", ', limited))
    assert [len(images) for images in task.datasets().values()] == [5, 3, 6]
    files = [opened(f"seed = {seed}\ntest_images = 3\n{TASK}") for seed in (0, 0, 1)]
    drawn = [names(task.ood["others"]) for task in files]
    assert drawn[0] == drawn[1] != drawn[2]


MISTAKES = {
    "a key that does not exist": ('keep = ["*/train/a/*"]', "keeps = []", "task 'letters' in .*: train.keeps: Extra"),
    "an image set without images": ('images = "letters", keep', "keep", "task 'letters' in .*: train.images: Field"),
    "no test images": ("test = ", "ood.more = ", "task 'letters' in .*: give train and test, or id"),
    "an unknown protocol": ("train = ", 'protocol = "same"\ntrain = ', "task 'letters' in .*: protocol: .*got 'same'"),
    "an OOD set called ID": ("ood.others", "ood.ID", "an OOD set cannot be called ID or train; give it another name"),
    "no TOML": ("[[tasks]]", "[[tasks", r"cannot read the task file '.*tasks.toml': .*\(at line 2"),
    "tasks that are no tables": ("[[tasks]]", "[tasks]", "each with a line"),
    "an unknown list of classes": ('["a"] }\nood', '"a" }\nood', "task 'letters', key test.classes: no list .* 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_one_line_with_task_and_key(opened, mistake):
    old, new, message = MISTAKES[mistake]
    assert old in TASK
    with pytest.raises(SettingsError, match=message) as caught:
        opened(TASK.replace(old, new, 1))
    assert "\n" not in str(caught.value)


PROBLEMS = {
    "missing images": ('"letters.tar"', '"gone.tar"', "task 'letters', key ood.others.images: .*gone.tar' does not"),
    "a glob without a match": ("*/train/a/*", "*/training/*", "task 'letters', key train: none of the 30 images in .*"),
    "no file of annotations": ('classes = ["a"]', 'classes = ["a"], annotations = "x.txt"', "key test.annotations: "),
    "images to fit to among the test images": ('["*/test/*"], classes', '["*"], classes', "6 images are in both train"),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_with_the_images_is_one_line_with_task_and_key(opened, problem):
    old, new, message = PROBLEMS[problem]
    assert old in TASK
    with pytest.raises(InputError, match=message):
        opened(TASK.replace(old, new, 1))


def test_at_least_one_id_image_is_left_for_testing(opened):
    text = """
        [[tasks]]
        name = "small"
        training_images = 10
        id = { images = "letters", classes = ["a"] }
        ood.rest = { images = "letters", classes = ["b"] }
    """
    with pytest.raises(InputError, match="task 'small', key training_images: id has 10 images, so 10 leave none"):
        opened(text)


def test_a_missing_file_and_two_tasks_of_one_name_are_refused(opened, tmp_path):
    with pytest.raises(SettingsError, match=r"the task file '.*none.toml' does not exist"):
        read_suite(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="has two tasks 'letters'"):
        opened(TASK + TASK)


def test_the_shipped_suite_has_18_tasks_of_which_half_are_held_back():
    suite = read_suite(SHIPPED)
    assert [task.half for task in suite.tasks] == ["chosen on", "held back"] * 9
    assert [task.name for task in suite.tasks][10:] == [
        "truck", "tiny-imagenet", "mnist", "dtd", "casting", "intel-scenes", "gtsrb", "fashion-mnist",
    ]  # fmt: skip
    assert [task.name for task in suite.tasks if task.protocol == "matched"] == ["cifar10"]
    assert len(set(suite.classes["tiny-inside"])) == 100


def test_tasks_are_chosen_by_name():
    suite = read_suite(SHIPPED)
    assert [task.name for task in chosen_tasks(suite, ["casting", "dtd"])] == ["dtd", "casting"]
    assert len(chosen_tasks(suite, ())) == 18
    with pytest.raises(SettingsError, match="there is no task 'DTD'; choose among cifar10, "):
        chosen_tasks(suite, ["DTD"])


def images(count):
    return ImageDataset([ImageItem(str(i), bytes) for i in range(count)])


@pytest.fixture
def task():
    return SuiteTask("numbers", None, "native", images(90), images(10), {"one": images(6), "two": images(14)})


def test_intruders_leave_the_ood_sets_and_are_the_asked_share_of_the_training_images(task):
    drawn = draw(task, None, 0.1, seed=0)
    assert len(drawn.train) == 90
    assert sum(len(part) for part in drawn.intruders.values()) == 10
    for name, left in drawn.ood.items():
        together = np.concatenate([left, drawn.intruders[name]])
        assert sorted(together) == list(range(len(task.ood[name])))


def test_training_images_and_intruders_depend_on_the_seed(task):
    first, same, other = (draw(task, 40, 0.1, seed) for seed in (0, 0, 1))
    assert len(first.train) == len(set(first.train)) == 40
    assert list(first.train) == list(same.train) != list(other.train)
    assert list(first.intruders["two"]) == list(same.intruders["two"]) != list(other.intruders["two"])


def test_without_a_limit_and_contamination_everything_is_used(task):
    drawn = draw(task, 500, 0.0, seed=3)
    assert list(drawn.train) == list(range(90))
    assert drawn.intruders == {}
    assert [len(part) for part in drawn.ood.values()] == [6, 14]


def test_too_many_intruders_are_refused(task):
    with pytest.raises(InputError, match=r"a contamination of 0\.2 needs 22 OOD images, more than half of the 20"):
        draw(task, None, 0.2, seed=0)
    small = SuiteTask("small", None, "native", images(40), images(5), {"one": images(1), "two": images(9)})
    with pytest.raises(InputError, match="takes all of 'one' of task 'small'"):
        for seed in range(20):
            draw(small, None, 0.1, seed)
