"""The octets and the I/O of one log: records, headers, footers, the writer, the scan."""
