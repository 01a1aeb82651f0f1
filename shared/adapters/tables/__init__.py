"""Tables on disk: the data set, validations, run records; DuckDB, Parquet and TensorBoard."""
