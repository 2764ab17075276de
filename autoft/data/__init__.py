"""The data layer: read sources, map columns to roles, cut splits, keep encoded features.

:func:`~autoft.data.prepared.prepare_data` runs once a run and writes Arrow files; workers open them memory-mapped with
:func:`~autoft.data.prepared.open_data`, and :func:`~autoft.data.features.encoded` has each split tokenized once for all
trials. Tables stay in Arrow: only rows that are looked at become Python objects.

Modules, from the recipe to the model: :mod:`~autoft.data.sources` finds what a recipe names, :mod:`~autoft.data.files`
reads csv, json and the like, :mod:`~autoft.data.columns` maps columns to roles, :mod:`~autoft.data.splits` cleans and cuts,
:mod:`~autoft.data.prepared` writes and opens the splits of a run, :mod:`~autoft.data.features` encodes them, and
:mod:`~autoft.data.batches` groups them. Below all of them, :mod:`~autoft.data.rows` holds rows in Arrow,
:mod:`~autoft.data.encodings` writes out what Arrow encodes, :mod:`~autoft.data.parquet_pages` says how much a Parquet file holds, and :mod:`~autoft.data.storage` writes rows to disk.
"""
