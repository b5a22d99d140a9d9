"""What the commands that look into a trained Hydra have in common."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, changed, setting
from dynkhydra_tf.files import check_writable
from dynkhydra_tf.runs import FinishedRun

if TYPE_CHECKING:
    from dynkhydra_tf.data import ImageData


@dataclasses.dataclass(frozen=True)
class HydraRunOptions(Checked):
    """The flags that name a Hydra's run, its data and the place to write to."""

    run_dir: str | None = setting(None, "The run of a Hydra to look into.", path=True)
    data_dir: str | None = setting(
        None, "Where the data set lies, as in train.py; default: the run's.", path=True
    )
    output_dir: str | None = setting(None, "Where to write; default RUN_DIR/evaluation.", path=True)

    def open_run(self, parts: str) -> tuple[FinishedRun, pathlib.Path]:
        """Opens the run.

        Args:
            parts: what of it is looked at, which a plain network has not, such as "branches".

        Returns:
            The run, and the directory to write to.

        Raises:
            UserError: no --run_dir, no run, one of a plain network, or a place that cannot be written to.
        """
        if not self.run_dir:
            raise UserError(f"Give --run_dir=DIR, the run whose {parts} to look at")
        run = FinishedRun.open(self.run_dir)
        run.check_hydra(parts)
        output = pathlib.Path(self.output_dir or run.evaluation)
        check_writable(output, "output_dir")
        return run, output

    def open_data(self, run: FinishedRun) -> "ImageData":
        """Opens the data of the run.

        Raises:
            UserError: they cannot be had, or have other classes or another size than those of its training.
        """
        from dynkhydra_tf.data import open_data

        given = {"data_dir": self.data_dir} if self.data_dir else {}
        data = open_data(changed(run.settings.data, **given), run.settings.place.cache_dir)
        run.check_data(data)
        return data
