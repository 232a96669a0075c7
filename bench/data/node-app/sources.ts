/** The project's own files: what a person would have written, in place of whom a loop does. By path. */

const PAGES = 48;

/** A Vite, React and TypeScript project on the dependencies of the package.json beside this file. */
export function projectSources(): Map<string, string> {
  const files = new Map([
    ["tsconfig.json", `${JSON.stringify(TSCONFIG, undefined, 2)}\n`],
    ["vite.config.ts", VITE_CONFIG],
    ["index.html", INDEX_HTML],
    ["src/main.tsx", main()],
    ["src/store.ts", STORE],
  ]);
  for (let page = 0; page < PAGES; page++) files.set(`src/pages/Page${page}.tsx`, pageSource(page));
  return files;
}

/** A project that only TypeScript is needed for, where the real one would take too long. */
export function miniatureSources(): Map<string, string> {
  const files = new Map([
    ["package.json", '{ "name": "miniature", "private": true, "type": "module" }\n'],
    ["tsconfig.json", `${JSON.stringify({ ...TSCONFIG, include: ["src"] }, undefined, 2)}\n`],
  ]);
  for (let module = 0; module < 5; module++) {
    files.set(`src/module${module}.ts`, `export const answer${module}: number = ${module} * 6;\n`);
  }
  return files;
}

const TSCONFIG = {
  compilerOptions: {
    target: "ES2022",
    module: "ESNext",
    moduleResolution: "Bundler",
    lib: ["ES2022", "DOM", "DOM.Iterable"],
    jsx: "react-jsx",
    strict: true,
    skipLibCheck: true,
    noEmit: true,
  },
  include: ["src", "vite.config.ts"],
};

const VITE_CONFIG = `import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({ plugins: [react()], build: { chunkSizeWarningLimit: 100_000 } });
`;

const INDEX_HTML = `<!doctype html>
<html lang="en">
  <head><meta charset="utf-8" /><title>node-app</title></head>
  <body><div id="root"></div><script type="module" src="/src/main.tsx"></script></body>
</html>
`;

const STORE = `import { configureStore, createSlice, type PayloadAction } from "@reduxjs/toolkit";
import { z } from "zod";

export const entrySchema = z.object({ id: z.number(), title: z.string(), at: z.coerce.date() });
export type Entry = z.infer<typeof entrySchema>;

const entries = createSlice({
  name: "entries",
  initialState: { byPage: {} as Record<number, number> },
  reducers: {
    visited(state, { payload }: PayloadAction<number>) {
      state.byPage[payload] = (state.byPage[payload] ?? 0) + 1;
    },
  },
});

export const { visited } = entries.actions;
export const store = configureStore({ reducer: { entries: entries.reducer } });
export type State = ReturnType<typeof store.getState>;
`;

function main(): string {
  const pages = Array.from({ length: PAGES }, (_, page) => page);
  return `import { CssBaseline, ThemeProvider, createTheme } from "@mui/material";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { createRoot } from "react-dom/client";
import { Provider } from "react-redux";
import { BrowserRouter, Route, Routes } from "react-router-dom";
${pages.map((page) => `import { Page${page} } from "./pages/Page${page}";`).join("\n")}
import { store } from "./store";

createRoot(document.getElementById("root") as HTMLElement).render(
  <Provider store={store}>
    <QueryClientProvider client={new QueryClient()}>
      <ThemeProvider theme={createTheme()}>
        <CssBaseline />
        <BrowserRouter>
          <Routes>
${pages.map((page) => `            <Route path="/${page}" element={<Page${page} />} />`).join("\n")}
          </Routes>
        </BrowserRouter>
      </ThemeProvider>
    </QueryClientProvider>
  </Provider>,
);
`;
}

/** Each page uses all of the libraries, in one of three ways. */
function pageSource(page: number): string {
  const drawings = [
    `const scale = d3.scaleLinear().domain(d3.extent(days, (day) => day.getTime()) as [number, number]).range([0, ${100 + page}]);
  const figure = useMemo(() => days.map((day) => scale(day.getTime())), [days]);`,
    `const figure = useMemo(() => new THREE.BoxGeometry(${page + 1}, 1, 1).getAttribute("position").array, []);`,
    `const figure = useMemo(() => d3.hierarchy({ children: days }).descendants().map((node) => node.depth), [days]);`,
  ];
  return `import { Button, Card, CardContent, List, ListItem, Typography } from "@mui/material";
import { useQuery } from "@tanstack/react-query";
import axios from "axios";
import * as d3 from "d3";
import { addDays, formatDistance } from "date-fns";
import { chunk, groupBy, range } from "lodash";
import { useMemo } from "react";
import { useDispatch, useSelector } from "react-redux";
import { Link } from "react-router-dom";
import * as THREE from "three";
import { type Entry, entrySchema, type State, visited } from "../store";

const START = new Date(2020, ${page % 12}, 1);

export function Page${page}() {
  const dispatch = useDispatch();
  const visits = useSelector((state: State) => state.entries.byPage[${page}] ?? 0);
  const { data = [] } = useQuery<Entry[]>({
    queryKey: ["entries", ${page}],
    queryFn: async () => entrySchema.array().parse((await axios.get("/api/entries/${page}")).data),
  });
  const days = useMemo(() => range(${page + 7}).map((day) => addDays(START, day)), []);
  ${drawings[page % drawings.length]}
  const weeks = groupBy(chunk(days, 7), (week) => week[0]?.getMonth());
  const color = new THREE.Color(d3.interpolateViridis(${page} / ${PAGES})).getHexString();
  return (
    <Card style={{ color: \`#\${color}\` }}>
      <CardContent>
        <Typography variant="h5">Page ${page}: {visits} visits, {figure.length} points</Typography>
        <List>
          {data.map(({ id, title, at }) => (
            <ListItem key={id}>{title}, {formatDistance(at, START)}</ListItem>
          ))}
        </List>
        <Typography>{Object.keys(weeks).length} months</Typography>
        <Button onClick={() => dispatch(visited(${page}))}>Visit</Button>
        <Link to="/${(page + 1) % PAGES}">Next</Link>
      </CardContent>
    </Card>
  );
}
`;
}
