// What lies over a page: a sheet from the right (the full screen of a phone), and menus.

import { Component, createRef, cx, html } from "../lib.js";
import { Icon } from "./icons.js";

// Sheet is a native modal dialog: focus is kept inside, Escape closes it, and focus returns to where it was.
export class Sheet extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
  }
  componentDidMount() {
    this.from = document.activeElement;
    this.box.current.showModal();
    const first = this.box.current.querySelector("[data-first]");
    if (first && matchMedia("(pointer: fine)").matches) first.focus();
  }
  componentWillUnmount() {
    if (this.from && this.from.isConnected) this.from.focus();
  }
  render({ title, children, foot, onClose, onSubmit }) {
    const cancel = (e) => {
      e.preventDefault();
      onClose();
    };
    const submit = (e) => {
      e.preventDefault();
      onSubmit();
    };
    const keys = (e) => {
      if (e.key === "Enter" && (e.metaKey || e.ctrlKey) && !e.isComposing) submit(e);
    };
    return html`<dialog class="sheet" ref=${this.box} aria-labelledby="sheet-title" onCancel=${cancel} onClick=${(e) => e.target === this.box.current && onClose()}>
      <form class="in" novalidate onSubmit=${submit} onKeyDown=${keys}>
        <div class="sh"><h2 id="sheet-title">${title}</h2><button type="button" class="btn quiet icon" aria-label="Close (Esc)" title="Close (Esc)" onClick=${onClose}><${Icon} name="x" /></button></div>
        <div class="sb">${children}</div><div class="sf">${foot}</div></form></dialog>`;
  }
}

// Menu is a button with a list of acts: [{words, icon, act, href, danger, phone, rule}]. Arrows move, Escape closes and gives focus back.
export class Menu extends Component {
  constructor(props) {
    super(props);
    this.box = createRef();
    this.button = createRef();
    this.state = { open: false };
  }
  componentWillUnmount() {
    document.removeEventListener("pointerdown", this.outside);
  }
  outside = (e) => {
    if (!this.box.current.contains(e.target)) this.close(false);
  };
  open() {
    document.addEventListener("pointerdown", this.outside);
    this.setState({ open: true }, () => this.move(null, 1));
  }
  close(focus = true) {
    document.removeEventListener("pointerdown", this.outside);
    this.setState({ open: false });
    if (focus) this.button.current.focus();
  }
  move(from, step) {
    const all = [...this.box.current.querySelectorAll("[role=menuitem]")].filter((e) => e.checkVisibility());
    const i = from ? all.indexOf(from) : step > 0 ? -1 : all.length;
    const next = all[(i + step + all.length) % all.length];
    if (next) next.focus();
  }
  keys = (e) => {
    const { open } = this.state;
    const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (!open && step && e.target === this.button.current) {
      e.preventDefault();
      this.open();
    } else if (!open) {
      return;
    } else if (e.key === "Escape") {
      e.preventDefault();
      e.stopPropagation();
      this.close();
    } else if (step) {
      e.preventDefault();
      this.move(e.target.closest("[role=menuitem]"), step);
    } else if (e.key === "Home" || e.key === "End") {
      e.preventDefault();
      this.move(null, e.key === "Home" ? 1 : -1);
    } else if (e.key === "Tab") {
      this.close(false);
    }
  };
  render({ label, items }, { open }) {
    const list = items.filter(Boolean);
    const pick = (item) => () => {
      this.close();
      if (item.act) item.act();
    };
    return html`<div class="menu-box" ref=${this.box} onKeyDown=${this.keys}>
      <button type="button" ref=${this.button} class="btn quiet icon small" aria-haspopup="menu" aria-expanded=${open ? "true" : "false"} aria-label=${label} title=${label} onClick=${() => (open ? this.close() : this.open())}><${Icon} name="more" /></button>
      ${open && html`<div class="menu" role="menu" aria-label=${label}>${list.map((i) => i.rule
        ? html`<div class=${cx("mrule", i.phone && "only-phone")} role="separator"></div>`
        : i.href
          ? html`<a role="menuitem" tabindex="-1" class=${cx("mi", i.phone && "only-phone")} href=${i.href} download=${i.download} onClick=${() => this.close()}><${Icon} name=${i.icon} small />${i.words}</a>`
          : html`<button type="button" role="menuitem" tabindex="-1" class=${cx("mi", i.danger && "danger", i.phone && "only-phone")} onClick=${pick(i)}><${Icon} name=${i.icon} small />${i.words}</button>`)}</div>`}</div>`;
  }
}
