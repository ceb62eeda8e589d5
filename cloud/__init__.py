"""The control plane: models, data streams, trainings, partitions, bundles, devices, rollouts, results.

Two processes share one database. `sluice cloud` is the REST service (`app`), which starts long work as jobs (`jobs`,
`job_process`, `job_start`) and never loads TensorFlow; `sluice results-writer` (`results_writer`, `projection`) is the
one that brings what happens on Kafka into the database.
"""
