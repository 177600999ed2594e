package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

const imageColumns = `id, account, name, recipe, kind, digest, engine, settings, size, origin, reference, platform, created_at, used_at`

func scanImage(row scanner) (sandbox.StoredImage, error) {
	var i sandbox.StoredImage
	var settings string
	var created, used int64
	if err := row.Scan(&i.ID, &i.Account, &i.Name, &i.Recipe, &i.Kind, &i.Digest, &i.Engine, &settings, &i.Size, &i.Origin, &i.Reference,
		&i.Platform, &created, &used); err != nil {
		return i, err
	}
	if err := json.Unmarshal([]byte(settings), &i.Settings); err != nil {
		return i, fmt.Errorf("the settings of %s: %w", i.ID, err)
	}
	i.CreatedAt, i.UsedAt = fromMicros(created), fromMicros(used)
	return i, nil
}

// PutImage records an image of an account. One that the account has under the same engine, name and recipe keeps its ID and gets the new
// content. It returns what is recorded then.
func (s *Store) PutImage(ctx context.Context, i sandbox.StoredImage) (sandbox.StoredImage, error) {
	settings, err := json.Marshal(i.Settings)
	if err != nil {
		return i, fmt.Errorf("store: record an image: %w", err)
	}
	if i.ID == "" {
		i.ID = sandbox.NewID(sandbox.PrefixImage)
	}
	err = s.update(ctx, "record an image", func(tx tx) error {
		if i.CreatedAt.IsZero() {
			i.CreatedAt = tx.now
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO images (`+imageColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
			ON CONFLICT (account, engine, name, recipe) DO UPDATE SET kind = excluded.kind, digest = excluded.digest, settings = excluded.settings,
			size = excluded.size, origin = excluded.origin, reference = excluded.reference, platform = excluded.platform,
			created_at = excluded.created_at, used_at = excluded.used_at`,
			i.ID, i.Account, i.Name, i.Recipe, string(i.Kind), i.Digest, i.Engine, string(settings), i.Size, string(i.Origin), i.Reference,
			i.Platform, micros(i.CreatedAt), micros(tx.now)); err != nil {
			return err
		}
		var err error
		i, err = scanImage(tx.QueryRowContext(ctx, `SELECT `+imageColumns+` FROM images WHERE account = $1 AND engine = $2 AND name = $3 AND recipe = $4`,
			i.Account, i.Engine, i.Name, i.Recipe))
		return err
	})
	return i, err
}

// Image returns one image of an account.
func (s *Store) Image(ctx context.Context, account, id string) (sandbox.StoredImage, error) {
	i, err := scanImage(s.read.QueryRowContext(ctx, `SELECT `+imageColumns+` FROM images WHERE id = $1 AND account = $2`, id, account))
	return i, s.fail("read an image", missing(err, "image", id))
}

// FindImage returns the account's image of that name and recipe on an engine.
func (s *Store) FindImage(ctx context.Context, account, engine, name, recipe string) (sandbox.StoredImage, error) {
	i, err := scanImage(s.read.QueryRowContext(ctx, `SELECT `+imageColumns+` FROM images WHERE account = $1 AND engine = $2 AND name = $3 AND recipe = $4`,
		account, engine, name, recipe))
	return i, s.fail("look an image up", missing(err, "image", name))
}

// Images lists the images of an account, those used last first. An account of "" means every account.
func (s *Store) Images(ctx context.Context, account string) ([]sandbox.StoredImage, error) {
	return list(ctx, s, "list images", scanImage, `SELECT `+imageColumns+` FROM images WHERE account = $1 OR $1 = '' ORDER BY used_at DESC, id DESC`, account)
}

// TouchImage records that an image has just been used.
func (s *Store) TouchImage(ctx context.Context, id string) error {
	return s.quietly(ctx, "note the use of an image", func(tx tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE images SET used_at = $1 WHERE id = $2`, micros(tx.now), id)
		return err
	})
}

// DeleteImage forgets an image of an account.
func (s *Store) DeleteImage(ctx context.Context, account, id string) error {
	return s.update(ctx, "forget an image", func(tx tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM images WHERE id = $1 AND account = $2`, id, account)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return missingOr(err, "image", id)
		}
		return nil
	})
}

// ForgetImages forgets the pulled and built images that nobody has used since then. What cannot be had again by the same request,
// imports and snapshots, stays.
func (s *Store) ForgetImages(ctx context.Context, before time.Time) error {
	return s.quietly(ctx, "forget old images", func(tx tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM images WHERE used_at < $1 AND kind IN ($2, $3)`,
			micros(before), string(sandbox.ImagePulled), string(sandbox.ImageBuilt))
		return err
	})
}
