// The icons, drawn for this product on a 16 px grid. They are built as elements, not referenced from a sheet, so that nothing
// has to be loaded for them.

import { cx, html } from "../lib.js";

const SHAPES = {
  alert: html`<path d="M8 2.5 14.2 13H1.8z"/><path d="M8 6.5v3M8 11.4v.1"/>`,
  back: html`<path d="m10 3-5 5 5 5"/>`,
  box: html`<path d="m8 2 5.5 3v6L8 14l-5.5-3V5z"/><path d="M2.7 5.1 8 8l5.3-2.9M8 8v6"/>`,
  chat: html`<path d="M2.5 3.5h11v7.5H7.5L4.5 13.5V11h-2z"/>`,
  check: html`<path d="m3.5 8.5 3 3 6-7"/>`,
  camera: html`<path d="M2.2 5h3l1.2-1.8h3.2L10.8 5h3v8H2.2z"/><circle cx="8" cy="8.8" r="2.3"/>`,
  chev: html`<path d="m6 4 4 4-4 4"/>`,
  clock: html`<circle cx="8" cy="8" r="5.8"/><path d="M8 4.8V8l2.2 1.4"/>`,
  copy: html`<rect x="5.5" y="5.5" width="8" height="8" rx="1.4"/><path d="M10.5 5.5v-3h-8v8h3"/>`,
  disk: html`<ellipse cx="8" cy="4" rx="5" ry="1.9"/><path d="M3 4v8c0 1 2.2 1.9 5 1.9s5-.9 5-1.9V4M3 8c0 1 2.2 1.9 5 1.9S13 9 13 8"/>`,
  dl: html`<path d="M8 3v7.5M4.8 7.5 8 10.7l3.2-3.2M3 10.5v2.7h10v-2.7"/>`,
  down: html`<path d="m4 6 4 4 4-4"/>`,
  eye: html`<path d="M1.8 8S4 4 8 4s6.2 4 6.2 4S12 12 8 12 1.8 8 1.8 8z"/><circle cx="8" cy="8" r="1.8"/>`,
  file: html`<path d="M4 2.5h5l3 3v8H4z"/><path d="M9 2.5v3h3"/>`,
  folder: html`<path d="M2 4.2h4l1.3 1.6H14v7H2z"/>`,
  fork: html`<circle cx="4" cy="3.6" r="1.5"/><circle cx="12" cy="6" r="1.5"/><circle cx="4" cy="12.4" r="1.5"/><path d="M4 5.1v5.8M4 9.2c0-2.4 6.4-.6 7.4-1.8"/>`,
  globe: html`<circle cx="8" cy="8" r="5.8"/><path d="M2.2 8h11.6M8 2.2c4 3.8 4 7.8 0 11.6-4-3.8-4-7.8 0-11.6z"/>`,
  half: html`<circle cx="8" cy="8" r="5"/><path d="M8 3a5 5 0 0 1 0 10z" fill="currentColor" stroke="none"/>`,
  info: html`<circle cx="8" cy="8" r="5.8"/><path d="M8 7.3v3.6M8 5.1v.1"/>`,
  key: html`<circle cx="5" cy="10.5" r="2.8"/><path d="m7 8.5 6-6M10.6 4.9l2 2M8.8 6.7l1.4 1.4"/>`,
  layers: html`<path d="m8 2.2 6 3-6 3-6-3z"/><path d="m2.4 8.4 5.6 2.8 5.6-2.8M2.4 11.2 8 14l5.6-2.8"/>`,
  list: html`<path d="m2.5 4.5 1 1 1.8-2M2.5 10.5l1 1 1.8-2M8 4.7h5.5M8 10.7h5.5"/>`,
  more: html`<circle cx="3.5" cy="8" r=".9" fill="currentColor"/><circle cx="8" cy="8" r=".9" fill="currentColor"/><circle cx="12.5" cy="8" r=".9" fill="currentColor"/>`,
  pencil: html`<path d="m3 13 .7-2.8L10.8 3 13 5.2 5.8 12.3z"/>`,
  pause: html`<path d="M5.8 3.5v9M10.2 3.5v9"/>`,
  play: html`<path d="M5 3.2 12.5 8 5 12.8z"/>`,
  plus: html`<path d="M8 3v10M3 8h10"/>`,
  redo: html`<path d="M13 8a5 5 0 1 1-1.5-3.6M13 2.5v2.8h-2.8"/>`,
  search: html`<circle cx="7" cy="7" r="4.2"/><path d="m10.2 10.2 3.3 3.3"/>`,
  send: html`<path d="M8 13V3.5M4 7l4-4 4 4"/>`,
  stop: html`<rect x="4.2" y="4.2" width="7.6" height="7.6" rx="1.2" fill="currentColor" stroke="none"/>`,
  term: html`<rect x="2" y="3" width="12" height="10" rx="1.6"/><path d="m4.8 6.4 1.9 1.7-1.9 1.7M8.4 10h2.8"/>`,
  trash: html`<path d="M3 4.5h10M6.2 4.5V3h3.6v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5"/>`,
  up: html`<path d="M8 10.5V3M4.8 6 8 2.8 11.2 6M3 10.5v2.7h10v-2.7"/>`,
  x: html`<path d="m4 4 8 8M12 4l-8 8"/>`,
  sun: html`<circle cx="8" cy="8" r="2.8"/><path d="M8 1.8v1.6M8 12.6v1.6M1.8 8h1.6M12.6 8h1.6M3.6 3.6l1.2 1.2M11.2 11.2l1.2 1.2M12.4 3.6l-1.2 1.2M4.8 11.2l-1.2 1.2"/>`,
  moon: html`<path d="M12.9 9.9A5.6 5.6 0 0 1 6.1 3.1a5.6 5.6 0 1 0 6.8 6.8z"/>`,
  out: html`<path d="M6.5 3H3v10h3.5M10 5l3 3-3 3M13 8H6"/>`,
};

// Icon is decoration: the words beside it, or the button's label, say what it means.
export const Icon = ({ name, small }) =>
  html`<svg class=${cx("ico", small && "ico-s")} viewBox="0 0 16 16" aria-hidden="true">${SHAPES[name] || SHAPES.more}</svg>`;

export const Mark = () => html`<svg class="mark" viewBox="0 0 20 20" aria-hidden="true">
  <path d="M10 1.8 18.2 10 10 18.2 1.8 10z" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linejoin="round"/>
  <circle cx="10" cy="10" r="1.7" fill="currentColor"/><path d="m10 13.8 2 2-2 2-2-2z" fill="currentColor"/></svg>`;

export const Pulse = () => html`<svg class="pulse" viewBox="0 0 14 14" aria-hidden="true">
  <circle cx="7" cy="7" r="5.5" fill="none" stroke="currentColor" stroke-opacity=".25" stroke-width="2"/>
  <path d="M7 1.5A5.5 5.5 0 0 1 12.5 7" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"/></svg>`;

export const ClaudeFace = () => html`<span class="clay" aria-hidden="true"><svg viewBox="0 0 14 14">
  <path d="M3 4.5 5.8 7 3 9.5M7.5 10H11" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/></svg></span>`;
