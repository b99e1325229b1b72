"""Results as tasks that Label Studio imports, with verdicts as predictions, and the labelling interface for them.

`tasks.json` has a task for each image: its address, the numbers of the result, and the verdict as a prediction whose
score is the p-value. `interface.xml` is the labelling interface to which verdicts belong. See
https://labelstud.io/guide/predictions.html
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from dlsr.reports.formats.base import VERDICTS, FolderFormat, absolute, json_file, verdict_of
from dlsr.results import Result

LOCAL = "/data/local-files/?d="
"""Where Label Studio serves files of its own machine, below its LOCAL_FILES_DOCUMENT_ROOT, by default all."""
INTERFACE = f"""<View>
  <Image name="image" value="$image"/>
  <Choices name="verdict" toName="image" choice="single-radio" showInLine="true">
{"".join(f'    <Choice value="{verdict}"/>{chr(10)}' for verdict in VERDICTS)}  </Choices>
</View>
"""


class LabelStudio(FolderFormat):
    """A folder with tasks for Label Studio, and the labelling interface of their project."""

    name: ClassVar[str] = "label-studio"
    files: ClassVar[tuple[str, ...]] = ("tasks.json", "interface.xml")

    def _write(self, folder: Path, results: Iterable[Result]) -> None:
        (folder / "interface.xml").write_text(INTERFACE, encoding="utf-8")
        with json_file(folder / "tasks.json", "[", "]") as tasks:
            for result in results:
                tasks.add(self._task(result))

    def _task(self, result: Result) -> dict[str, Any]:
        data = {"image": self._address(result.path), "path": result.path, **self._numbers_of(result)}
        if result.error is not None:
            return {"data": data}
        choice = {
            "from_name": "verdict",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [verdict_of(result)]},
        }
        return {"data": data, "predictions": [{"model_version": "dlsr", "score": result.p_value, "result": [choice]}]}

    def _address(self, name: str) -> str:
        root = self.images.root
        if root is None:
            return LOCAL + quote(absolute(name).lstrip("/"))
        return self.images.below(root, name, quote)
