package local

// MaxPool is the most that Config.Pool may be.
const MaxPool = 16
