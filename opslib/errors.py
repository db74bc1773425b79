"""Every error that opslib raises on purpose.

OpslibError                what happened, and a hint that says what to do
├── ConfigurationError     a parameter, specification or OPSLIB_* variable is wrong
├── PhotosError            the photos cannot be used as they are
│   └── DownloadError      an archive could not be fetched whole
├── HostLost               a process that trains together with this one ended or fell silent
├── ArtifactError          model.pth / model.json is missing, damaged or not ours
├── ModelRefused           a finished model failed the gate before deployment
├── AwsError               AWS refused or failed; carries the service's own words
│   ├── TrainingFailed     a training or tuning job ended as Failed or Stopped
│   ├── EndpointFailed     an endpoint did not come into service
│   ├── DeploymentRolledBack  an endpoint's new model was taken back, and the old one serves
│   └── FunctionFailed     a Lambda function failed or answered with an error
└── RehearsalError         the local AWS cannot start, or was asked for something it cannot rehearse
"""


class OpslibError(Exception):
    """Base of all errors raised by opslib.

    `str(error)` is the message, followed by the hint on a line of its own when there is one.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep what happened (`message`) apart from what to do about it (`hint`)."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message and, on the next line, the hint."""
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigurationError(OpslibError):
    """A parameter, a specification or an OPSLIB_* variable is wrong."""


class PhotosError(OpslibError):
    """The photos cannot be used as they are."""


class DownloadError(PhotosError):
    """An archive could not be fetched whole, or is not the file that was promised."""


class HostLost(OpslibError):
    """A process that trains together with this one ended or fell silent."""


class ModelRefused(OpslibError):
    """A finished model failed the gate before deployment; the message names the evidence."""


class ArtifactError(OpslibError):
    """model.pth or model.json is missing, damaged or not written by opslib."""


class AwsError(OpslibError):
    """AWS refused or failed; the message holds the service's own words."""


class TrainingFailed(AwsError):
    """A training or tuning job ended as Failed or Stopped; the message holds its FailureReason."""


class EndpointFailed(AwsError):
    """An endpoint did not come into service, or its model answered with an error."""


class DeploymentRolledBack(AwsError):
    """An endpoint's new model was taken back, and the old one serves; the message holds SageMaker's reason."""


class FunctionFailed(AwsError):
    """A Lambda function could not be made ready, or its handler raised."""


class RehearsalError(OpslibError):
    """The local AWS cannot start, or was asked for something that it cannot rehearse."""
