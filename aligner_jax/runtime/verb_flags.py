"""Flags of commands, like those of `absl.flags`, but of modules that may be imported together.

Several commands have flags of the same names. A process runs one command; one that imports several, as documentation
tools and tests do, would otherwise end with absl's DuplicateFlagError.
"""

import functools

from absl import flags

# absl takes a flag for that of the module which calls these functions.
flags.disclaim_key_flags()

FLAGS = flags.FLAGS
DEFINE_bool = functools.partial(flags.DEFINE_bool, allow_override=True)
DEFINE_enum = functools.partial(flags.DEFINE_enum, allow_override=True)
DEFINE_float = functools.partial(flags.DEFINE_float, allow_override=True)
DEFINE_integer = functools.partial(flags.DEFINE_integer, allow_override=True)
DEFINE_multi_string = functools.partial(flags.DEFINE_multi_string, allow_override=True)
DEFINE_string = functools.partial(flags.DEFINE_string, allow_override=True)
