"""What all packages share: values, names, errors, interfaces, settings. It imports no other package of the gateway."""
