"""The HTTP contract as the client sees it: requests, replies, operations and retries. No I/O but `http`."""
