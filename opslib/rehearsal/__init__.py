"""A local AWS that really trains, serves, throttles and denies: no account, no Docker, no root, no internet."""
