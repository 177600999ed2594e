package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandlot-dev/sandlot/api"
	"github.com/sandlot-dev/sandlot/client"
)

func lsCommand() *cobra.Command {
	var r remote
	var all bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List sandboxes",
		Long:  "List the sandboxes that haven't ended, the newest first." + aboutRemote,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.connect(cmd)
			if err != nil {
				return err
			}
			list := []api.Sandbox{}
			if err := each(cmd.Context(), c, func(sb api.Sandbox) bool {
				if all || !over(sb) {
					list = append(list, sb)
				}
				return true
			}); err != nil {
				return err
			}
			if r.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tSTATE\tIMAGE\tVOLUME\tENDS")
			for _, sb := range list {
				ends := "—"
				if !over(sb) {
					ends = "in " + time.Until(sb.ExpiresAt).Round(time.Second).String()
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", sb.ID, sb.Name, sb.State, sb.Image.Registry, sb.Volume, ends)
			}
			return w.Flush()
		},
	}
	r.flags(cmd)
	r.jsonFlag(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	return cmd
}

func createCommand() *cobra.Command {
	var r remote
	var in api.CreateSandbox
	var image string
	var env, labels []string
	var timeout time.Duration
	var noWait bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a sandbox and print its ID",
		Long:  "Make a sandbox, wait until it runs, and print its ID." + aboutRemote,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c, err := r.connect(cmd)
			if err != nil {
				return err
			}
			if image != "" {
				in.Image = &api.Image{Registry: image}
			}
			if in.Env, err = pairs("--env", env); err != nil {
				return err
			}
			if in.Labels, err = pairs("--label", labels); err != nil {
				return err
			}
			in.TimeoutS = int64(timeout / time.Second)
			make := c.Create
			if noWait {
				make = c.CreateNoWait
			}
			sb, err := make(cmd.Context(), in)
			if err != nil {
				return err
			}
			if r.json {
				return printJSON(cmd.OutOrStdout(), sb)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), sb.ID)
			return err
		},
	}
	r.flags(cmd)
	r.jsonFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&in.Name, "name", "", "for people; default: two words")
	f.StringVar(&image, "image", "", "registry reference of the image; default: the programs of the server's machine")
	f.StringVar(&in.Volume, "volume", "", "name of the volume; default: a fresh one")
	f.StringVar(&in.Workdir, "workdir", "", "where the volume is; default: /workspace")
	f.StringArrayVarP(&env, "env", "e", nil, "NAME=value for every process; may be repeated")
	f.StringArrayVar(&labels, "label", nil, "NAME=value; may be repeated")
	f.Float64Var(&in.CPU, "cpu", 0, "cores; default: not limited")
	f.Int64Var(&in.MemoryMiB, "memory", 0, "MiB; default: not limited")
	f.DurationVar(&timeout, "timeout", 0, "when it ends, whatever it does; default: 1h")
	f.BoolVar(&noWait, "no-wait", false, "don't wait until it runs")
	return cmd
}

// pairs reads NAME=value.
func pairs(flag string, list []string) (map[string]string, error) {
	out := make(map[string]string, len(list))
	for _, kv := range list {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s: %q is not NAME=value", flag, kv)
		}
		out[name] = value
	}
	return out, nil
}

func rmCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:   "rm SANDBOX…",
		Short: "End sandboxes",
		Long:  "End sandboxes and wait until nothing of them is left but their volumes." + aboutRemote,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.connect(cmd)
			if err != nil {
				return err
			}
			ended, errs := []api.Sandbox{}, []error{}
			for _, name := range args {
				id, err := find(cmd.Context(), c, name)
				if err == nil {
					var sb api.Sandbox
					if sb, err = c.Terminate(cmd.Context(), id); client.Code(err) == "already_terminated" {
						sb, err = c.Sandbox(cmd.Context(), id)
					}
					ended = append(ended, sb)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
				} else if !r.json {
					fmt.Fprintln(cmd.OutOrStdout(), id)
				}
			}
			if r.json {
				errs = append(errs, printJSON(cmd.OutOrStdout(), ended))
			}
			return errors.Join(errs...)
		},
	}
	r.flags(cmd)
	r.jsonFlag(cmd)
	return cmd
}
