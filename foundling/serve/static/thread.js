// SPDX-License-Identifier: Apache-2.0
// The list of messages. A change of branch touches only what differs; the browser lays out only what is in sight.
import { path, version } from "./conversation.js";
import { MessageView } from "./message.js";

export class Thread {
  constructor(container, actions) {
    this.container = container;
    this.actions = actions;
    this.views = [];
  }

  /** Shows the chosen messages of a conversation; views of the same nodes stay. */
  show(conversation) {
    const nodes = path(conversation);
    let same = 0;
    while (same < nodes.length && this.views[same]?.node === nodes[same]) same += 1;
    for (const view of this.views.splice(same)) view.element.remove();
    const fresh = nodes.slice(same).map((node) => new MessageView(node, this.actions));
    this.views.push(...fresh);
    this.container.append(...fresh.map((view) => view.element));
    for (const view of fresh) view.summarize();
    for (const view of this.views) {
      view.showVersion(version(conversation, view.node.id));
      view.showMore();
    }
  }

  /** Whether what changes messages can be chosen. */
  enable(is) {
    for (const button of this.container.querySelectorAll("[data-idle]")) button.disabled = !is;
  }

  viewOf(node) {
    return this.views.find((view) => view.node === node);
  }

  /** Keeps the end in sight, if it was. */
  follow(change) {
    const page = document.scrollingElement;
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
    change();
    if (atEnd) page.scrollTop = page.scrollHeight;
  }
}
