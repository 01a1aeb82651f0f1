"""The validator: judges every version out of sample and promotes those that prove an edge."""
