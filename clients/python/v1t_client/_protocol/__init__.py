"""The HTTP contract on the client's side: arguments, requests, replies, operations and retries, without I/O."""
