package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// measure is one kind of work, done by several sides in turn. The first side is what the others are compared with.
type measure struct {
	what  string
	sides []*side
	note  string // what else was measured
}

type side struct {
	name string
	took []time.Duration
}

func newMeasure(what string, sides ...string) *measure {
	m := &measure{what: what}
	for _, name := range sides {
		m.sides = append(m.sides, &side{name: name})
	}
	return m
}

func (m *measure) add(name string, took ...time.Duration) {
	for _, s := range m.sides {
		if s.name == name {
			s.took = append(s.took, took...)
			return
		}
	}
	m.sides = append(m.sides, &side{name: name, took: took})
}

type report []*measure

// row is one side of one measure, as JSON.
type row struct {
	What    string  `json:"what"`
	Side    string  `json:"side"`
	Samples int     `json:"samples"`
	Median  float64 `json:"median_ms"`
	Slow    float64 `json:"p90_ms"`
	Against string  `json:"against,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"` // of the medians
	Last    float64 `json:"p99_ms"`
	Note    string  `json:"note,omitempty"`
}

func (r report) rows() []row {
	var rows []row
	for _, m := range r {
		base := quantile(m.sides[0].took, 0.5)
		for i, s := range m.sides {
			one := row{What: m.what, Side: s.name, Samples: len(s.took), Median: ms(quantile(s.took, 0.5)), Slow: ms(quantile(s.took, 0.9)), Last: ms(quantile(s.took, 0.99))}
			if i == 0 {
				one.Note = m.note
			}
			if i > 0 && base > 0 {
				one.Against, one.Ratio = m.sides[0].name, float64(quantile(s.took, 0.5))/float64(base)
			}
			rows = append(rows, one)
		}
	}
	return rows
}

func (r report) json(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(r.rows())
}

func (r report) table(out io.Writer) error {
	fmt.Fprint(out, "Medians, 90th and 99th percentiles in milliseconds. A ratio is a median divided by that of the first side of the same work.\n\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tside\tsamples\tmedian\tp90\tp99\tratio")
	last := ""
	for _, one := range r.rows() {
		what, ratio := one.What, ""
		if what == last {
			what = ""
		}
		last = one.What
		if one.Against != "" {
			ratio = fmt.Sprintf("%.2f", one.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%.1f\t%.1f\t%.1f\t%s\n", what, one.Side, one.Samples, one.Median, one.Slow, one.Last, ratio)
		if one.Note != "" {
			fmt.Fprintf(w, "\t(%s)\t\t\t\t\t\n", one.Note)
		}
	}
	return w.Flush()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(int(q*float64(len(ds))), len(ds)-1)]
}
