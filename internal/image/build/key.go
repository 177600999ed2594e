package build

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strings"

	"github.com/sandlot-dev/sandlot/internal/image"
)

// key is the name that a step is cached by: a hash of what determines its result. Each part stands with its length, so that no two lists are one.
type key struct{ h hash.Hash }

// keyVersion changes with what a step's result depends on besides its key.
const keyVersion = "sandlot build 1"

func newKey(kind string, parts ...string) *key {
	return (&key{h: sha256.New()}).add(keyVersion, kind).list(parts)
}

func (k *key) add(parts ...string) *key {
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		k.h.Write(n[:])
		k.h.Write([]byte(p))
	}
	return k
}

func (k *key) list(parts []string) *key {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(parts)))
	k.h.Write(n[:])
	return k.add(parts...)
}

func (k *key) pairs(m map[string]string) *key {
	names := sortedKeys(m)
	k.list(names)
	for _, name := range names {
		k.add(m[name])
	}
	return k
}

func (k *key) settings(s image.Settings) *key {
	return k.list(s.Env).add(s.User, s.Workdir).list(s.Entrypoint).list(s.Cmd).list(s.Shell).pairs(s.Labels).
		list(s.Ports).list(s.Volumes).add(s.StopSignal)
}

func (k *key) sum() string { return hex.EncodeToString(k.h.Sum(nil)) }

// newHash returns the hash of that name, or nil.
func newHash(name string) hash.Hash {
	switch strings.ToLower(name) {
	case "sha256":
		return sha256.New()
	case "sha384":
		return sha512.New384()
	case "sha512":
		return sha512.New()
	}
	return nil
}
