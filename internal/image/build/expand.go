package build

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// maxExpansion bounds what the variables of one instruction may add up to: values made of values double with every line.
const maxExpansion = 1 << 20

var errTooLarge = errors.New("expanding its variables gives too much text")

// vars are variables as BuildKit's lexer asks for them.
type vars struct {
	get    func(name string) (string, bool)
	budget int // bytes that may still be handed out
	used   bool
}

func (v *vars) Get(name string) (string, bool) {
	value, ok := v.get(name)
	if !ok {
		return "", false
	}
	v.used = true
	if v.budget -= len(value); v.budget < 0 {
		return "", true
	}
	return value, true
}

func (v *vars) Keys() []string { return nil }

// expander expands the words of one instruction.
type expander struct {
	lex  *shell.Lex
	raw  *shell.Lex // for the text of heredocs, where quotes are just quotes
	vars *vars
}

func newExpander(escape rune, get func(string) (string, bool)) *expander {
	raw := shell.NewLex('\\')
	raw.SkipProcessQuotes = true
	return &expander{lex: shell.NewLex(escape), raw: raw, vars: &vars{get: get, budget: maxExpansion}}
}

func (e *expander) word(word string) (string, error) {
	if err := e.guard(word); err != nil {
		return "", err
	}
	out, _, err := e.lex.ProcessWord(word, e.vars)
	return e.bounded(out, err)
}

func (e *expander) rawWord(word string) (string, error) {
	if err := e.guard(word); err != nil {
		return "", err
	}
	out, _, err := e.raw.ProcessWord(word, e.vars)
	return e.bounded(out, err)
}

func (e *expander) words(word string) ([]string, error) {
	if err := e.guard(word); err != nil {
		return nil, err
	}
	out, err := e.lex.ProcessWords(word, e.vars)
	_, err = e.bounded("", err)
	return out, err
}

func (e *expander) bounded(out string, err error) (string, error) {
	if err != nil {
		return "", errors.New(parseText(err))
	}
	if e.vars.budget < 0 || len(out) > maxExpansion {
		return "", errTooLarge
	}
	return out, nil
}

// guard refuses words that ${name/pattern/replacement} could blow up before anyone could count: nested ones multiply.
func (e *expander) guard(word string) error {
	if strings.Count(word, "${") > maxVariables {
		return fmt.Errorf("more than %d ${…}", maxVariables)
	}
	size := len(word)
	for rest := word; ; {
		i := strings.Index(rest, "${")
		if i < 0 {
			return nil
		}
		rest = rest[i+2:]
		name, _, ok := strings.Cut(rest, "/")
		if !ok || strings.ContainsAny(name, "}:+-?#%$ ") {
			continue
		}
		if value, ok := e.vars.get(name); ok {
			if size *= len(value) + 1; size > 64<<20 {
				return errTooLarge
			}
		}
	}
}

// expand replaces the variables of cmd, in the instructions where Docker does that.
func (e *expander) expand(cmd instructions.Command) error {
	switch c := cmd.(type) {
	case *instructions.ArgCommand: // a default counts only where no value was given
		return nil
	case *instructions.ExposeCommand:
		var ports []string
		for _, p := range c.Ports {
			ws, err := e.words(p)
			if err != nil {
				return err
			}
			ports = append(ports, ws...)
		}
		c.Ports = ports
		return nil
	}
	if x, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := x.Expand(e.word); err != nil {
			return err
		}
	}
	if x, ok := cmd.(instructions.SupportsSingleWordExpansionRaw); ok {
		return x.ExpandRaw(e.rawWord)
	}
	return nil
}

// checkExpansion finds what is wrong with the variables of ins whatever their values are, and, where it uses none, with the result.
func (s *script) checkExpansion(ins *instruction) error {
	e := newExpander(s.escape, func(string) (string, bool) { return "1", true })
	if c, ok := ins.cmd.(*instructions.ArgCommand); ok {
		for _, a := range c.Args {
			if _, err := e.word(a.ValueString()); err != nil {
				return ins.problem("%s", err)
			}
		}
		return nil
	}
	err := e.expand(ins.cmd)
	if _, isRun := ins.cmd.(*instructions.RunCommand); isRun && e.vars.used {
		return nil // a mount with variables: only their values tell
	}
	if err != nil {
		return ins.problem("%s", parseText(err))
	}
	if e.vars.used {
		return nil
	}
	if p := checkExpanded(ins); p != nil {
		return p
	}
	return nil
}
