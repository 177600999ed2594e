package build

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// Bounds of what is parsed. BuildKit's parser joins a heredoc's lines one by one, which is slow for very many, and an image has few layers.
const (
	maxText         = 256 << 10
	maxLines        = 10_000
	maxInstructions = 500
	maxVariables    = 500     // ${…} in one instruction: the lexer is quadratic where they are nested
	maxWord         = 1 << 17 // Linux takes no longer argument or variable
)

// field is what every problem here is about.
const field = "image.dockerfile_commands"

// script is a parsed list of commands.
type script struct {
	list     []*instruction
	escape   rune
	warnings []string
}

// instruction is one of them.
type instruction struct {
	step int // from 1
	line int // where it begins in the whole text, from 1
	text string
	cmd  instructions.Command
}

// short is the instruction for people: one line, shortened.
func (i *instruction) short() string {
	s := strings.Join(strings.Fields(cleanLine(strings.ReplaceAll(i.text, "\n", " "))), " ")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// problem is what is wrong with the instruction.
func (i *instruction) problem(format string, args ...any) *sandbox.Problem {
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "dockerfile_invalid", Field: field,
		Detail: fmt.Sprintf("line %d: %s: %s", i.line, i.short(), fmt.Sprintf(format, args...))}
}

// refuse says that the instruction can't work here, and what could.
func (i *instruction) refuse(format string, args ...any) *sandbox.Problem {
	p := i.problem(format, args...)
	p.Code = "dockerfile_unsupported"
	return p
}

// Check parses commands and refuses what can't work, before anything is pulled or run. What depends on the image or on values of
// variables shows only in Build. Its error is a *sandbox.Problem that names the line.
func Check(commands []string) error {
	script, err := parse(commands)
	if err != nil {
		return err
	}
	for _, ins := range script.list {
		if err := script.checkExpansion(ins); err != nil {
			return err
		}
	}
	return nil
}

// parse returns the instructions of commands, each known to be of a supported kind. Nothing at all is no error: there is nothing to do then.
func parse(commands []string) (*script, error) {
	text, err := join(commands)
	if err != nil {
		return nil, err
	}
	s := &script{escape: parser.DefaultEscapeToken}
	if blank(text) {
		return s, nil
	}
	res, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, syntaxProblem(err)
	}
	s.escape = res.EscapeToken
	for _, w := range res.Warnings {
		s.warnings = append(s.warnings, warningText(w))
	}
	if n := len(res.AST.Children); n > maxInstructions {
		return nil, sandbox.Invalid(field, "%d instructions are more than the %d that one image may have; join RUNs with &&", n, maxInstructions)
	}
	for i, node := range res.AST.Children {
		ins := &instruction{step: i + 1, line: node.StartLine, text: original(node)}
		if p := refuseNode(ins, node); p != nil {
			return nil, p
		}
		cmd, err := instructions.ParseCommand(node)
		if err != nil {
			return nil, ins.problem("%s", parseText(err))
		}
		ins.cmd = cmd
		if p := refuseCommand(ins); p != nil {
			return nil, p
		}
		s.list = append(s.list, ins)
	}
	return s, nil
}

// join makes one text of the commands, within bounds and without what the parser was not made for.
func join(commands []string) (string, error) {
	size := 0
	for _, c := range commands {
		if size += len(c) + 1; size > maxText {
			return "", sandbox.Invalid(field, "the commands are longer than %d KiB; put long scripts into files", maxText>>10)
		}
	}
	var b strings.Builder
	for _, c := range commands {
		b.WriteString(strings.TrimSuffix(strings.TrimSuffix(c, "\n"), "\r"))
		b.WriteByte('\n')
	}
	text := b.String()
	variables := 0
	for n, line := range strings.Split(text, "\n") {
		switch {
		case n >= maxLines:
			return "", sandbox.Invalid(field, "more than %d lines; put long scripts into files", maxLines)
		case strings.IndexByte(line, 0) >= 0:
			return "", sandbox.Invalid(field, "line %d holds a NUL byte", n+1)
		case !utf8.ValidString(line):
			return "", sandbox.Invalid(field, "line %d is not valid UTF-8", n+1)
		}
		if variables += strings.Count(line, "${"); variables > maxVariables {
			return "", sandbox.Invalid(field, "line %d: more than %d ${…} in one instruction", n+1, maxVariables)
		}
		if end := strings.TrimRight(line, " \t\r"); !strings.HasSuffix(end, `\`) && !strings.HasSuffix(end, "`") {
			variables = 0 // either may be the escape that joins lines
		}
	}
	return text, nil
}

// blank reports whether text holds no instruction, which is an error to the parser.
func blank(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "\uFEFF"))
		if line != "" && line[0] != '#' {
			return false
		}
	}
	return true
}

// original is the whole text of a node, heredocs included.
func original(node *parser.Node) string {
	text := strings.TrimSpace(node.Original)
	for _, h := range node.Heredocs {
		text += "\n" + h.Content + h.Name
	}
	return text
}

func syntaxProblem(err error) error {
	where := ""
	var loc *parser.LocationError
	if errors.As(err, &loc) && len(loc.Locations) > 0 && len(loc.Locations[0]) > 0 {
		where = fmt.Sprintf("line %d: ", max(1, loc.Locations[0][0].Start.Line))
	}
	return &sandbox.Problem{Class: sandbox.ErrInvalid, Code: "dockerfile_invalid", Field: field, Detail: where + parseText(err)}
}

// parseText is BuildKit's sentence, bounded: it quotes what it could not read.
func parseText(err error) string {
	s := cleanLine(err.Error())
	if len(s) > 400 {
		s = strings.ToValidUTF8(s[:400], "") + "…"
	}
	return s
}

func warningText(w parser.Warning) string {
	s := parseText(errors.New(w.Short))
	if w.Location != nil {
		s = fmt.Sprintf("line %d: %s", w.Location.Start.Line, s)
	}
	return s
}
