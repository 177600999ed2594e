// The files of a sandbox: a tree that follows what happens in it, a place to drop files, and the file that is open.

import { Component, createRef, cx, html, useEffect, useRef, useState } from "../lib.js";
import * as api from "../api.js";
import * as files from "../fileapi.js";
import * as uploads from "../uploads.js";
import { bytes, plural } from "../format.js";
import { follow } from "../sse.js";
import { addressOf, addressOfPath, childOf, isFolder, parentOf, pathOf, Tree, typed, within, wrongName } from "../tree.js";
import { Act, ConfirmDelete } from "./boxacts.js";
import { ProblemNotice, Skeleton } from "./bits.js";
import { Field } from "./fields.js";
import { FileView } from "./fileview.js";
import { Icon } from "./icons.js";
import { Menu } from "./sheet.js";
import { Uploads } from "./uploads.js";

// Files shows the files of sandbox sb. open is the address of the open file, "" = none; onOpen(at) opens another.
export class Files extends Component {
  constructor(props) {
    super(props);
    this.state = { rev: 0, at: "", dialog: null, problem: null, late: false, over: "", live: "connecting", note: "" };
    this.box = createRef();
    this.picker = createRef();
    this.folder = createRef();
    this.letters = { text: "", at: 0 };
    this.filters = new Map();
    this.begin(addressOfPath(props.sb.workdir));
  }

  begin(root) {
    this.tree = new Tree(root);
    this.events = new Set();
  }

  componentDidMount() {
    this.start();
    document.addEventListener("visibilitychange", this.seen);
    addEventListener("pagehide", this.stop);
    addEventListener("pageshow", this.seen);
  }

  componentWillUnmount() {
    this.gone = true;
    this.stop();
    clearTimeout(this.hiding);
    clearTimeout(this.slow);
    document.removeEventListener("visibilitychange", this.seen);
    removeEventListener("pagehide", this.stop);
    removeEventListener("pageshow", this.seen);
  }

  // A hidden tab lets go of its stream after a while: browsers allow an origin only six connections. Coming back, all is read anew.
  seen = () => {
    clearTimeout(this.hiding);
    if (document.hidden) this.hiding = setTimeout(this.stop, 30_000);
    else if (!this.stream) this.start();
  };

  stop = () => {
    if (this.stream) this.stream.close();
    this.stream = null;
  };

  start() {
    clearTimeout(this.slow);
    this.slow = setTimeout(() => this.gone || this.setState({ late: true }), 200);
    const { sb } = this.props;
    const tree = this.tree;
    this.load(tree.root).then(() => this.reveal(this.props.open));
    let old = false;
    const stream = follow({
      request: api.request,
      url: () => files.watchURL(sb.id, tree.root, tree.root !== "/"), // all of a computer is more than anybody looks at
      onState: (live) => old || this.setState({ live }),
      onEvent: (e) => old || this.heard(e),
    });
    this.stream = {
      close() {
        old = true;
        stream.close();
      },
    };
  }

  draw = () => this.gone || this.setState((s) => ({ rev: s.rev + 1 }));

  heard(e) {
    let change;
    try {
      change = JSON.parse(e.data);
    } catch {
      return; // [DONE]
    }
    for (const at of this.tree.apply(e.event, change)) this.load(at);
    const { at } = this.state;
    if (e.event === "moved" && at) {
      const from = change.from_escaped || addressOfPath(change.from);
      if (within(at, from)) this.setState({ at: addressOf(change.file) + at.slice(from.length) });
    }
    for (const listener of this.events) listener(e.event, change);
    this.draw();
  }

  // load reads a folder's first page, or the next.
  async load(at, more = false) {
    const { sb } = this.props;
    const { tree } = this;
    const node = tree.get(at);
    if (!node) return;
    node.loading = true;
    this.draw();
    try {
      const page = await files.list(sb.id, at, { cursor: more ? node.more : "", contains: this.filters.get(at) || "" });
      tree.fill(at, page, !more);
      node.problem = null;
    } catch (problem) {
      if (problem.status === 404 && at !== tree.root) tree.remove(at);
      node.problem = problem;
    }
    node.loading = false;
    this.draw();
  }

  // reveal opens the folders on the way to a place.
  async reveal(at) {
    const { tree } = this;
    if (!at || !within(at, tree.root)) return;
    const way = [];
    for (let dir = parentOf(at); dir !== tree.root && within(dir, tree.root); dir = parentOf(dir)) way.unshift(dir);
    for (const dir of way) {
      const node = tree.get(dir);
      if (!node || this.tree !== tree) return;
      node.open = true;
      if (!node.kids) await this.load(dir);
    }
    this.setState({ at });
  }

  toggle = (node, open = !node.open) => {
    if (!isFolder(node.file)) return;
    node.open = open;
    if (open) this.load(node.at);
    this.draw();
  };

  choose = (node) => {
    this.setState({ at: node.at });
    if (isFolder(node.file)) this.toggle(node);
    else this.props.onOpen(node.at);
  };

  move(rows, to) {
    const row = rows[Math.max(0, Math.min(rows.length - 1, to))];
    if (!row) return;
    this.setState({ at: row.more ? `${row.node.at}…` : row.node.at }, () => {
      const el = this.box.current.querySelector("[tabindex='0'][role=treeitem]");
      if (el) {
        el.focus();
        el.scrollIntoView({ block: "nearest" });
      }
    });
  }

  key = (e, rows) => {
    if (!e.target.matches("[role=treeitem]")) return;
    const i = rows.findIndex((r) => this.keyOf(r) === e.target.dataset.at);
    const row = rows[i];
    if (!row || e.ctrlKey || e.metaKey || e.altKey) return;
    const { node } = row;
    const acts = {
      ArrowDown: () => this.move(rows, i + 1),
      ArrowUp: () => this.move(rows, i - 1),
      Home: () => this.move(rows, 0),
      End: () => this.move(rows, rows.length - 1),
      ArrowRight: () => (!row.more && isFolder(node.file) ? (node.open ? this.move(rows, i + 1) : this.toggle(node, true)) : null),
      ArrowLeft: () => (!row.more && node.open ? this.toggle(node, false) : this.move(rows, rows.findIndex((r) => !r.more && r.node.at === (row.more ? node.at : parentOf(node.at))))),
      Enter: () => (row.more ? this.load(node.at, true) : this.choose(node)),
      " ": () => (row.more ? this.load(node.at, true) : this.choose(node)),
      F2: () => row.more || this.ask("rename", node),
      Delete: () => row.more || this.ask("delete", node),
      ContextMenu: () => this.menuOf(e.target),
      F10: () => e.shiftKey && this.menuOf(e.target),
    };
    let act = acts[e.key];
    if (!act && e.key.length === 1 && !row.more) {
      const now = Date.now();
      this.letters = { text: (now - this.letters.at < 800 ? this.letters.text : "") + e.key, at: now };
      act = () => {
        const to = typed(rows, i, this.letters.text);
        if (to >= 0) this.move(rows, to);
      };
    }
    if (!act) return;
    e.preventDefault();
    e.stopPropagation();
    act();
  };

  menuOf(row) {
    const b = row.querySelector("[aria-haspopup=menu]");
    if (b) b.click();
  }

  // place puts an open menu over what scrolls, above its button where there is no room below.
  place = () => {
    const menu = this.box.current && this.box.current.querySelector(".tree .menu");
    if (!menu) return;
    const at = menu.parentElement.getBoundingClientRect();
    const high = menu.offsetHeight;
    menu.style.top = `${at.bottom + high + 8 > innerHeight ? Math.max(8, at.top - high - 4) : at.bottom + 4}px`;
    menu.style.left = `${Math.max(8, at.right - menu.offsetWidth)}px`;
  };

  keyOf = (r) => (r.more ? `${r.node.at}…` : r.node.at);
  ask = (what, node) => this.setState({ dialog: { what, node } });
  close = () => this.setState({ dialog: null });

  // ---- Files that come in ----

  target = (e) => {
    const row = e.target.closest && e.target.closest("[role=treeitem]");
    const node = row && this.tree.get(row.dataset.at);
    if (!node) return this.tree.root;
    return isFolder(node.file) ? node.at : parentOf(node.at);
  };

  over = (e) => {
    if (![...e.dataTransfer.types].includes("Files")) return;
    e.preventDefault();
    e.dataTransfer.dropEffect = "copy";
    const over = this.target(e);
    if (over !== this.state.over) this.setState({ over });
  };

  leave = (e) => {
    if (!this.box.current.contains(e.relatedTarget)) this.setState({ over: "" });
  };

  drop = async (e) => {
    if (![...e.dataTransfer.types].includes("Files")) return;
    e.preventDefault();
    const dir = this.target(e);
    this.setState({ over: "", problem: null });
    try {
      uploads.add(this.props.sb.id, dir, await uploads.dropped(e.dataTransfer));
    } catch (problem) {
      this.setState({ problem: { title: "What was dropped could not be read.", problem } });
    }
  };

  picked = (e) => {
    const list = [...e.currentTarget.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
    e.currentTarget.value = "";
    uploads.add(this.props.sb.id, this.here(), list);
  };

  // here is the folder that new things go to: the one that is chosen, or that of the chosen file.
  here() {
    const node = this.tree.get(this.state.at);
    if (!node) return this.tree.root;
    return isFolder(node.file) ? node.at : parentOf(node.at);
  }

  turn = () => {
    this.stop();
    this.begin(this.tree.root === "/" ? addressOfPath(this.props.sb.workdir) : "/");
    this.setState({ at: "", late: false });
    this.start();
  };

  render({ sb, open, onOpen }, { at, dialog, problem, late, over, live }) {
    const { tree } = this;
    const root = tree.get(tree.root);
    const rows = tree.rows();
    const active = rows.some((r) => this.keyOf(r) === at) ? at : rows.length ? this.keyOf(rows[0]) : "";
    const menu = (node) => [
      !isFolder(node.file) && { words: "Open", icon: "eye", act: () => onOpen(node.at) },
      isFolder(node.file)
        ? { words: "Download as zip", icon: "dl", href: files.archiveURL(sb.id, node.at), download: `${node.file.name}.zip` }
        : node.file.type === "file" && { words: "Download", icon: "dl", href: files.fileURL(sb.id, node.at), download: node.file.name },
      isFolder(node.file) && { words: "New folder in it", icon: "folder", act: () => this.ask("folder", node) },
      isFolder(node.file) && { words: "New file in it", icon: "file", act: () => this.ask("file", node) },
      { words: "Rename or move", icon: "pencil", act: () => this.ask("rename", node) },
      { rule: true },
      { words: "Delete", icon: "trash", danger: true, act: () => this.ask("delete", node) },
    ];
    const Ask = dialog && DIALOGS[dialog.what];
    const away = tree.root === "/";
    return html`<div class=${cx("files", open && "with-view")} ref=${this.box} onDragOver=${this.over} onDragLeave=${this.leave} onDrop=${this.drop}>
      <div class="files-bar"><code class="cut grow" title=${root.file.path}>${root.file.path}</code>
        ${live === "broken" && html`<span class="chip" title="Changes are shown again when the connection is back"><span class="dot off"></span>Not live</span>`}
        <button type="button" class="btn quiet icon small" aria-label="Upload files" title=${`Upload files to ${pathOf(this.here())}`} onClick=${() => this.picker.current.click()}><${Icon} name="up" /></button>
        <button type="button" class="btn quiet icon small" aria-label="New file" title=${`New file in ${pathOf(this.here())}`} onClick=${() => this.ask("file", tree.get(this.here()) || root)}><${Icon} name="plus" /></button>
        <${Menu} label="More about these files" items=${[
          { words: "New folder", icon: "folder", act: () => this.ask("folder", tree.get(this.here()) || root) },
          { words: "Upload a folder", icon: "up", act: () => this.folder.current.click() },
          { words: "Download all as zip", icon: "dl", href: files.archiveURL(sb.id, tree.root), download: "files.zip" },
          { rule: true },
          { words: away ? `Show ${sb.workdir}` : "Show the whole sandbox", icon: "disk", act: this.turn },
        ]} />
        <input type="file" hidden multiple ref=${this.picker} onChange=${this.picked} data-pick="files" /><input type="file" hidden webkitdirectory ref=${this.folder} onChange=${this.picked} data-pick="folder" /></div>
      ${problem && html`<${ProblemNotice} ...${problem} />`}
      <${ProblemNotice} title="The files could not be read." problem=${root.problem} acts=${html`<button type="button" class="btn small" onClick=${() => this.load(tree.root)}>Try again</button>`} />
      ${!root.kids && !root.problem && late && html`<div class="files-sk"><${Skeleton} rows=${6} /></div>`}
      ${root.kids && !rows.length && html`<p class="files-empty faint">${this.filters.get(tree.root) ? "Nothing here is called that." : "Empty. Drop files here."}</p>`}
      <div class=${cx("tree", over === tree.root && "drop-to")} role="tree" aria-label=${`Files in ${root.file.path}`} onKeyDown=${(e) => this.key(e, rows)} onClick=${() => requestAnimationFrame(this.place)} onScroll=${this.place}>${rows.map((r) => (r.more
        ? html`<${More} key=${this.keyOf(r)} row=${r} id=${this.keyOf(r)} active=${active} filter=${this.filters.get(r.node.at) || ""} onMore=${() => this.load(r.node.at, true)}
            onFilter=${(text) => { this.filters.set(r.node.at, text); this.load(r.node.at); }} />`
        : html`<${Row} key=${r.node.at} row=${r} active=${active === r.node.at} on=${open === r.node.at} over=${over === r.node.at} menu=${menu} onChoose=${this.choose} onFocus=${(node) => node.at !== at && this.setState({ at: node.at })} />`))}</div>
      ${[...this.filters].filter(([a, text]) => text && tree.get(a) && !tree.get(a).more).map(([a, text]) => html`<p class="files-note" key=${a}>Only names with “${text}” in ${pathOf(a)}. <button type="button" class="link" onClick=${() => { this.filters.delete(a); this.load(a); }}>Show all</button></p>`)}
      <${Uploads} sb=${sb} />
      ${open && html`<${FileView} key=${open} sb=${sb} at=${open} events=${this.events} onMoved=${(to) => onOpen(to, true)} onClose=${() => onOpen("")} />`}
      ${Ask && html`<${Ask} sb=${sb} node=${dialog.node} onClose=${this.close} onOpen=${onOpen} open=${open} onDone=${() => this.draw()} />`}
    </div>`;
  }
}

function Row({ row, active, on, over, menu, onChoose, onFocus }) {
  const { node, level, pos, size } = row;
  const { file } = node;
  const folder = isFolder(file);
  const link = file.type === "symlink";
  return html`<div class=${cx("trow", on && "on", over && "drop-to")} role="treeitem" data-at=${node.at} data-level=${Math.min(level, 12)} tabindex=${active ? 0 : -1} aria-level=${level} aria-posinset=${pos} aria-setsize=${size}
      aria-expanded=${folder ? String(Boolean(node.open)) : undefined} aria-selected=${String(Boolean(on))} aria-label=${`${file.name}${folder ? "" : link ? `, leads to ${file.target}` : `, ${bytes(file.size)}`}`}
      title=${link ? `${file.name} → ${file.target}` : file.name} onFocus=${(e) => e.target === e.currentTarget && onFocus(node)} onClick=${(e) => e.target.closest(".menu-box") || onChoose(node)}>
    <span class=${cx("twist", node.open && "open")}>${folder && html`<${Icon} name="chev" small />`}</span><${Icon} name=${folder ? "folder" : "file"} /><span class="cut grow">${file.name}${link && html`<span class="faint"> → ${file.target}</span>`}</span>
    ${node.problem && html`<span class="bad-t">can’t be read</span>`}${node.loading && node.open && !node.kids && html`<span class="faint">reading …</span>`}
    ${!folder && !link && html`<span class="num faint">${file.type === "file" ? bytes(file.size) : "special"}</span>`}<${Menu} label=${`What to do with ${file.name}`} items=${menu(node)} /></div>`;
}

// More stands at the end of a folder of which only a part was read.
function More({ row, id, active, filter, onMore, onFilter }) {
  const [text, setText] = useState(filter);
  const submit = (e) => {
    e.preventDefault();
    onFilter(text.trim());
  };
  return html`<div class="trow more" role="treeitem" data-at=${id} data-level=${Math.min(row.level, 12)} tabindex=${active === id ? 0 : -1} aria-level=${row.level} aria-label="More entries" onClick=${(e) => e.target === e.currentTarget && onMore()}>
    <button type="button" class="link" tabindex="-1" onClick=${onMore}>${row.node.loading ? "Reading …" : `${plural(row.node.kids.length, "entry", "entries")} shown. Show more`}</button>
    <form class="grow" onSubmit=${submit} onClick=${(e) => e.stopPropagation()}><input class="input" aria-label="Show only names with" placeholder="or only names with …" value=${text} autocomplete="off" autocapitalize="off" spellcheck="false"
      onInput=${(e) => setText(e.currentTarget.value)} onKeyDown=${(e) => e.stopPropagation()} /></form></div>`;
}

// ---- Dialogs ----

function NewDialog({ sb, node, onClose, onOpen, folder }) {
  const [name, setName] = useState("");
  const [tried, setTried] = useState(false);
  const wrong = wrongName(name);
  const act = async () => {
    setTried(true);
    if (wrong) return false;
    const at = childOf(node.at, name);
    if (folder) await files.makeFolder(sb.id, at);
    else await files.write(sb.id, at, "", "");
    return at;
  };
  return html`<${Act} title=${folder ? "New folder" : "New file"} words=${folder ? "Make folder" : "Make file"} failed="It was not made." onClose=${onClose} act=${act} onDone=${(at) => { onClose(); if (!folder) onOpen(at); }}>
    <${Field} id="new-entry" label="Name" value=${name} onInput=${setName} error=${tried ? wrong : ""} hint=${`In ${pathOf(node.at)}`} /></${Act}>`;
}

function MoveDialog({ sb, node, onClose, onOpen, open }) {
  const [path, setPath] = useState(node.file.path);
  const odd = Boolean(node.file.escaped);
  const [wrong, setWrong] = useState("");
  const act = async () => {
    const parts = path.split("/");
    const bad = !path.startsWith("/") ? "A path begins with /." : wrongName(parts[parts.length - 1]);
    setWrong(bad);
    if (bad) return false;
    const to = addressOfPath(path);
    if (to !== node.at) await files.move(sb.id, node.at, to);
    return to;
  };
  return html`<${Act} title=${`Rename or move ${node.file.name}`} words="Move" failed="It was not moved." onClose=${onClose} act=${act}
      onDone=${(to) => { onClose(); if (open && within(open, node.at)) onOpen(to + open.slice(node.at.length), true); }}>
    <${Field} id="move-entry" label="Path" value=${path} onInput=${setPath} error=${wrong} hint=${odd ? "Its name is no text; the new one will be." : "Folders on the way are made. Nothing is replaced."} /></${Act}>`;
}

const DIALOGS = {
  folder: (props) => html`<${NewDialog} folder ...${props} />`,
  file: (props) => html`<${NewDialog} ...${props} />`,
  rename: MoveDialog,
  delete: ({ sb, node, onClose, onOpen, open }) => html`<${ConfirmDelete} title=${`Delete ${node.file.name}?`} words=${isFolder(node.file) ? "Delete folder" : "Delete file"} onClose=${onClose}
    onYes=${async () => {
      await files.remove(sb.id, node.at);
      if (open && within(open, node.at)) onOpen("");
    }}>${isFolder(node.file) ? `${pathOf(node.at)} goes with all that is in it.` : `${pathOf(node.at)} goes.`} This can’t be undone.</${ConfirmDelete}>`,
};
