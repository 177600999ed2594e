package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandlot-dev/sandlot/internal/server"
	"github.com/sandlot-dev/sandlot/internal/store"
)

// urlFile holds the address of the running server, for commands on its machine.
const urlFile = "url"

func signinCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "signin",
		Short: "Print a fresh sign-in link of the server on this machine",
		Long:  "Print a link that signs a browser in, once, within 15 minutes. It works for whoever may read the server's data directory.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.fill(cmd, os.Environ()); err != nil {
				return err
			}
			base, err := os.ReadFile(filepath.Join(cfg.Data, urlFile))
			if err != nil {
				return fmt.Errorf("no server has been started with data directory %s (use --data): %w", cfg.Data, err)
			}
			st, err := store.Open(cmd.Context(), cfg.Database)
			if err != nil {
				return err
			}
			defer st.Close()
			account, _, err := st.EnsureAccount(cmd.Context(), firstAccount)
			if err != nil {
				return err
			}
			token, err := server.IssueSignin(cmd.Context(), st, account.ID)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(string(base))+"/signin/"+token)
			return nil
		},
	}
	cfg.flags(cmd)
	return cmd
}
