/* The plugin under its own name: `nbdkit relocator KEY=VALUE...`.
 *
 * nbdkit finds a plugin by name only if it is a shared object. This one is nbdkit's own Python plugin,
 * from the same directory, told which script to run before anything else is configured. Nothing of a
 * request passes through here: nbdkit calls the Python plugin's functions.
 *
 * Needs -DSCRIPT="/path/of/relocator/plugin.py" and -DVERSION="...".
 */
#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2
#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <nbdkit-plugin.h>

struct nbdkit_plugin *plugin_init (void);

/* A copy of the Python plugin's table, which may be of another size than ours. */
static union {
  struct nbdkit_plugin table;
  char bytes[8192];
} ours;
static const struct nbdkit_plugin *python;
static bool script_given;

static int
give_script (void)
{
  if (script_given)
    return 0;
  script_given = true;
  return python->config ("script", SCRIPT);
}

static int
relocator_config (const char *key, const char *value)
{
  return give_script () == 0 ? python->config (key, value) : -1;
}

static int
relocator_config_complete (void)
{
  if (give_script () != 0)
    return -1;
  return python->config_complete ? python->config_complete () : 0;
}

/* The Python plugin, which lies beside this one. */
static struct nbdkit_plugin *
find_python (void)
{
  Dl_info here;
  char path[PATH_MAX];
  const char *slash;
  struct nbdkit_plugin *(*init) (void);
  void *library;

  if (dladdr (&ours, &here) == 0 || (slash = strrchr (here.dli_fname, '/')) == NULL) {
    nbdkit_error ("relocator: can't tell where its own file is");
    return NULL;
  }
  snprintf (path, sizeof path, "%.*s/nbdkit-python-plugin.so",
            (int) (slash - here.dli_fname), here.dli_fname);
  library = dlopen (path, RTLD_NOW | RTLD_GLOBAL);
  init = library ? (struct nbdkit_plugin *(*) (void)) dlsym (library, "plugin_init") : NULL;
  if (init == NULL) {
    nbdkit_error ("relocator: needs nbdkit's Python plugin: %s", dlerror ());
    return NULL;
  }
  return init ();
}

struct nbdkit_plugin *
plugin_init (void)
{
  struct nbdkit_plugin *found = find_python ();

  if (found == NULL)
    return NULL;
  if (found->_struct_size > sizeof ours) {
    nbdkit_error ("relocator: this nbdkit's Python plugin is too new for it");
    return NULL;
  }
  python = found;
  memcpy (&ours, found, found->_struct_size);
  ours.table.name = "relocator";
  ours.table.longname = "relocator: moves a disk to another site while it is used";
  ours.table.version = VERSION;
  ours.table.description = NULL;
  ours.table.magic_config_key = NULL;
  ours.table.config = relocator_config;
  ours.table.config_complete = relocator_config_complete;
  ours.table.config_help =
    "disk=PATH                serve a disk that is all here\n"
    "store=DIR source=URI     serve a disk while it is copied from its source\n"
    "control=PATH             socket for `relocator status` and the other commands\n"
    "All parameters: relocator(1).";
  return &ours.table;
}
