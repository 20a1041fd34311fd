"""Which implementation of attention is the fastest, as measured.

Written by ``python -m experiments.speed.attention --write-table``, which times forward and backward
of each on the platform that it runs on; rows of other platforms stay as they are.
"""

# (platform, bits of a number) -> from which number of pairs Q * K on which implementation.
TABLE: dict[tuple[str, int], tuple[tuple[int, str], ...]] = {
  ('cpu', 16): ((0, 'dense'), (65536, 'chunked')),
  ('cpu', 32): ((0, 'dense'), (262144, 'chunked')),
}
