"""Facts stated in the prompts of requests that another server answers. No torch."""
