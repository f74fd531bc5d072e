"""The protocol, and what each rule claims beyond being a gradient."""
