"""What bounds the clients: connections, bytes in memory, requests of one caller, and the origins of web pages."""
