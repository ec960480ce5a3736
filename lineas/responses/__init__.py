"""What a network's units do, as numbers: the pooled responses of all sites side by side in one host buffer."""
