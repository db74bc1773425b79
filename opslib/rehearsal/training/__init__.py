"""Training jobs: the submitted code as plain processes under the container contract."""
