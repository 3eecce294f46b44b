"""From log-mel spectrograms to waves: trained vocoders, and what trains them."""
