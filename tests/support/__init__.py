"""Kits that the tests share: a hub, a store, a faulty disk, an oracle."""
