package local

// Installation is exported for tests.
var Installation = installation
