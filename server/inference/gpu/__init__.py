"""What only a GPU needs: one thread and one stream, few batch sizes, recorded kernels."""
