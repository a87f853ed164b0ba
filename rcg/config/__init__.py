"""The configuration of an experiment: YAML -> frozen, typed sections."""

from rcg.config.base import (
    ORIGIN,
    OWN,
    RUNTIME,
    Batch,
    Config,
    Depth,
    Fraction,
    ImageSize,
    Side,
    Steps,
    Width,
    dump_without,
    identity,
    training_identity,
)
from rcg.config.experiment import Experiment, differences, load_encoder_section, load_experiment, parse_saved_config
from rcg.config.sections import (
    AlignConfig,
    AutoencoderConfig,
    DataConfig,
    EncoderConfig,
    GeneratorConfig,
    GuidanceConfig,
    ModelConfig,
    PerceptualConfig,
    ProcessConfig,
    ProjectionConfig,
    RDMConfig,
    RepresentationAutoencoderConfig,
    SamplerConfig,
    TrainableAutoencoderConfig,
)
from rcg.config.training import (
    AugmentConfig,
    AutoencoderTrain,
    ContrastiveTrain,
    GeneratorTrain,
    LatentAlignConfig,
    RDMTrain,
    TrainConfig,
    resolve_epochs,
    trainings,
)
