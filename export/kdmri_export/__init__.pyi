from .passes.cast import cast_convolutions as cast_convolutions
from .passes.data_consistency import Lowering as Lowering
from .recipe import ExportRecipe as ExportRecipe
