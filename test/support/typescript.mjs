// With --import: lets Node run the tests' TypeScript, whose imports name the files that a compiler would make.
import { registerHooks } from "node:module";

registerHooks({
  resolve(specifier, context, nextResolve) {
    const isOurs = specifier.startsWith(".") && !context.parentURL?.includes("/node_modules/");
    return nextResolve(isOurs ? specifier.replace(/\.js$/, ".ts") : specifier, context);
  },
});
