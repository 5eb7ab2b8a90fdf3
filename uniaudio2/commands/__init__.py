"""The commands of `uniaudio2`, one module each: `add_parser` declares its arguments and what runs them."""
