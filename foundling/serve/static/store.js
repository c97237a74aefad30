// SPDX-License-Identifier: Apache-2.0
// What the views share: models, the chosen one, sampling, and the token that is looked at. Views subscribe.

export function createStore(state) {
  const listeners = new Set();
  return {
    get: () => state,
    /** Changes some fields and tells those who subscribed to one of them. */
    set(changes) {
      const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
      state = { ...state, ...changes };
      for (const { names, action } of listeners) if (changed.some((name) => names.includes(name))) action(state);
    },
    subscribe(names, action) {
      const listener = { names, action };
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}
