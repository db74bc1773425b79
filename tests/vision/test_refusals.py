"""A refusal is one of opslib's errors and, where AWS's inference toolkit is installed, one of the toolkit's."""

import importlib.util
import sys
from types import ModuleType

from opslib.errors import OpslibError
from opslib.vision import refusals


class BaseInferenceToolkitError(Exception):
    """The toolkit's class, with its constructor (sagemaker_inference 1.10.1, errors.py)."""

    def __init__(self, status_code: int, message: str, phrase: str) -> None:
        self.status_code = status_code
        self.message = message
        self.phrase = phrase
        super().__init__(status_code, message, phrase)


def test_a_refusal_is_the_toolkits_in_awss_container(monkeypatch) -> None:
    toolkit, errors = ModuleType("sagemaker_inference"), ModuleType("sagemaker_inference.errors")
    errors.BaseInferenceToolkitError = BaseInferenceToolkitError
    monkeypatch.setitem(sys.modules, "sagemaker_inference", toolkit)
    monkeypatch.setitem(sys.modules, "sagemaker_inference.errors", errors)
    specification = importlib.util.spec_from_file_location("refusals_in_the_container", refusals.__file__)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    error = module.RequestError(415, "this is not a photo")
    assert isinstance(error, BaseInferenceToolkitError)
    assert (error.status_code, error.message, error.phrase) == (415, "this is not a photo", "Unsupported Media Type")


def test_a_refusal_reads_the_same_without_the_toolkit() -> None:
    error = refusals.RequestError(413, "too large")
    assert isinstance(error, OpslibError)
    assert str(error) == error.message == "too large"
    assert (error.status_code, error.hint) == (413, "")
