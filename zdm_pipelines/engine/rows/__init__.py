"""Row work: ranges of keys, moved batch by batch, each batch committed together with its checkpoint."""
