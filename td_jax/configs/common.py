"""Every option of td_jax, declared once, with its default and its meaning.

A config file starts from `common.get_config()` and only changes values; what is not declared here
cannot be set, on the command line or anywhere else. The code reads `config.x` and holds no defaults
of its own.
"""

import ml_collections


def model_config():
    """The options of one model, teacher or student."""
    model = ml_collections.ConfigDict()
    # The architecture, a name of td_jax.models.MODELS: mlp, vit or resnet; for a pretrained teacher also
    # efficientnet and resnet_bn.
    model.name = 'mlp'
    # Where a student's parameters start: 'random', or 'teacher', which copies every parameter of the same
    # name: everything around the blocks, and the teacher's first blocks, as many as the student has. A head
    # for other labels starts anew. (A teacher: 'random'.)
    model.initial = 'random'
    # MLP: widths of the hidden layers, input side first.
    model.hidden = (128, 64)
    # How many hidden layers or blocks make up `lower`, whose output is the lower hidden state s. MLP with
    # embeddings: 0 makes the embeddings the lower state. ResNet: the number of stages; 0 is the root alone.
    model.split = 1
    # Dropout rate in training: after each hidden layer; ViT: after the positions and in each block; a ResNet
    # has none.
    model.dropout = 0.0
    # MLP: width of the embedding of each categorical or bag-of-words input, by input name; inputs that are
    # not named here are used as they are.
    model.embeddings = ml_collections.ConfigDict()
    # MLP: width of the embedding of inputs that model.embeddings does not name; 0 requires all of them to be
    # named there.
    model.embedding_width = 0
    # ViT: sizes by name, Ti, S, B or L, a slash, and the side of a patch in pixels: 8, 14, 16 or 32. ResNet:
    # R, a depth, x and a factor of the width, such as R50x1 (as BiT's; R101 and R152), or for small images
    # R20x1 (R8, R14, R32, R44, R56 and R110). EfficientNet: b0 to b7, or lite0 to lite4. ResNet with
    # BatchNorm: as timm calls it, such as resnet50.
    model.variant = 'B/32'
    # ViT: sizes that replace the variant's; 0 keeps the variant's. Number of blocks, width of the hidden
    # states, width of an MLP's hidden layer, attention heads, side of a patch. ResNet: only the width, of the
    # root.
    model.layers = 0
    model.width = 0
    model.mlp = 0
    model.heads = 0
    model.patch = 0
    # ViT: 'gelu_tanh', as google-research/vision_transformer computes it, or 'gelu', the exact one.
    model.activation = 'gelu_tanh'
    # ViT: added to the variance in each LayerNorm.
    model.epsilon = 1e-6
    # ViT: whether a Dense with tanh comes between the class token and the head.
    model.pre_logits = False
    # ViT: learned tokens between the class token and the patches, without a position: the registers of
    # DINOv2, or the distillation token of DeiT.
    model.registers = 0
    # ViT: what the head reads, a name of td_jax.models.vit.POOLINGS: 'class', the class token;
    # 'class_and_mean', also the mean of the patches; or 'class_and_register', also the first register. (CKA
    # and probes read the class token in any case.)
    model.pooling = 'class'
    # EfficientNet: how images are padded, 'same' as TensorFlow does it, or 'symmetric'.
    model.padding = 'same'
    # ViT and ResNet: what the forward pass saves of a block or unit for the gradient, a name of
    # td_jax.devices.remat.POLICIES: everything_saveable, dots_saveable, dots_with_no_batch_dims_saveable or
    # nothing_saveable. The rest is recomputed: less memory, the same results.
    model.remat_policy = 'everything_saveable'
    return model


def optimizer_config():
    """The options of one training run's optimizer."""
    optimizer = ml_collections.ConfigDict()
    # The update rule, a name of td_jax.training.optimizer.OPTIMIZERS: adamw or sgd.
    optimizer.name = 'adamw'
    # Peak learning rate.
    optimizer.learning_rate = 1e-3
    # Shape of the learning rate after the warm-up, a name of td_jax.training.optimizer.SCHEDULES: constant or
    # cosine (to 0 at num_steps).
    optimizer.schedule = 'constant'
    # Steps over which the learning rate rises linearly from 0.
    optimizer.warmup_steps = 0
    # Decoupled weight decay: each step reduces a parameter by this times the learning rate, relative to its
    # value.
    optimizer.weight_decay = 0.0
    # What weight decay acts on, a name of td_jax.training.optimizer.DECAYED: 'kernels' (of Dense layers, and
    # the embeddings of ids and words; not biases, norms, class token and positions) or 'all'.
    optimizer.decayed = 'kernels'
    # SGD: momentum.
    optimizer.momentum = 0.9
    # Largest norm of the gradient, which is clipped to it; 0 does not clip. The student, and the modules that
    # are learned in addition, are each clipped to a norm of their own.
    optimizer.clip_norm = 0.0
    return optimizer


def task_config():
    """Which part of a data set a model is trained on, and its preprocessing; both models have one."""
    task = ml_collections.ConfigDict()
    # MovieLens: only movies of this genre, or 'all'.
    task.genre = 'all'
    # Ratings: only items that have this value in this column of the file; '' and '' use all.
    task.filter_column = ''
    task.filter_value = ''
    # Classification: only these classes of the data set, in this order; () uses all.
    task.classes = ()
    # Classification: labelled training examples per class, selected by dataset.labelled_by; 0 uses all.
    task.examples_per_class = 0
    # Images: side in pixels of the model's input. (Teacher: 0 means that of a public checkpoint, or else the
    # student's.)
    task.image_size = 32
    # Images: how they are resized, a name of td_jax.data.resizing.RESIZES: 'bilinear', as
    # google-research/vision_transformer does it, or 'bilinear_antialias' or 'bicubic_antialias', as Pillow
    # does it for Hugging Face and timm. (Teacher: '' means what 0 does above; the same for the next two.)
    task.resize = 'bilinear'
    # Images: what they are resized to in an evaluation, and in training without random crops: a square
    # ('squash'), or such that the shortest side has the length below ('center').
    task.crop_mode = 'squash'
    # Images: image_size divided by that length; the middle is then cut out. 224 of 256 pixels is 0.875.
    task.crop_pct = 1.0
    # Images: normalisation of pixels between 0 and 1, for red, green and blue: minus the mean, divided by the
    # standard deviation. The defaults give -1 to 1.
    task.image_mean = (0.5, 0.5, 0.5)
    task.image_std = (0.5, 0.5, 0.5)
    return task


def dataset_config():
    """The options of the data, except for the part of it that the teacher is trained on."""
    dataset = task_config()
    # The data set, a name of td_jax.data.SOURCES: movielens, digits, cifar10, cifar100 or imagenet; ratings
    # or images for your own; or tfds.
    dataset.name = 'movielens'
    # Ratings: a CSV or TSV whose first line names its columns. Images: a folder with one folder per class, or
    # with train and test that each have one folder per class.
    dataset.path = ''
    # TFDS: its name of a data set of images with one label each, such as oxford_flowers102.
    dataset.tfds = ''
    # MovieLens: its size, a name of td_jax.data.movielens.SIZES: 100k, 1m, 20m, 25m or latest-small.
    dataset.movielens = '100k'
    # What is evaluated: 'validation' (a slice cut from the training data, for choosing hyperparameters) or
    # 'test' (trains on the slice as well).
    dataset.split = 'test'
    # Classification: which examples examples_per_class selects: 'seed': each seed draws its own, the same for
    # every method and in a search (a teacher draws by its own seed); 'first': the first ones of the data set,
    # the same for all seeds.
    dataset.labelled_by = 'seed'
    # Training examples without labels, which every term but the task's reads in addition: 'rest', those that
    # examples_per_class leaves; a number of them, such as '500'; for images also a folder of images; for
    # ratings a number of pairs of known users and items without a rating, or a CSV or TSV of pairs; '' takes
    # none. Each step has unlabelled_batch_size of them.
    dataset.unlabelled = ''
    # Images: the part of the test set that is evaluated: 'all', or one of two halves by the content of the
    # images: 'development', for decisions, or 'held_out', which is read once, after all decisions.
    dataset.test_part = 'all'
    # Ratings: the columns of the file with the ids of users and items, the rating, and its time, as numbers
    # or dates.
    dataset.user_column = 'user'
    dataset.item_column = 'item'
    dataset.rating_column = 'rating'
    dataset.timestamp_column = 'timestamp'
    # Ratings: columns of the file that describe an item, each an input of its name: texts, which become bags
    # of words, and categories, of which a cell may hold several with the separator between them.
    dataset.words = ()
    dataset.categories = ()
    dataset.separator = '|'
    # MovieLens, ratings: what the test set and a validation slice are: the last tenth of all ratings ('time',
    # the temporal split), or of each user's own ('user', the per-user split), in order of time.
    dataset.split_by = 'time'
    # MovieLens, ratings: which tenth of the training part the validation slice is, counted backwards from the
    # test; 0 to 5. Training uses only what lies before it.
    dataset.validation_slice = 0
    # MovieLens, ratings: share of user ids, and of ids of movies or items, that training replaces with the
    # out-of-vocabulary id.
    dataset.user_oov_rate = 0.5
    dataset.movie_oov_rate = 0.1
    # MovieLens, ratings: a word that occurs in the titles, or texts, of fewer movies or items than this is
    # out of vocabulary.
    dataset.min_title_word_count = 2
    # Images: smallest share of an image's area that a random crop keeps in training; 1 takes the whole image.
    dataset.min_crop_area = 0.05
    # Images: probability that a training image is mirrored.
    dataset.mirror_rate = 0.5
    # Images and TFDS: images are kept in memory, one byte per colour, if they take at most so many GB at the
    # size that they are kept at; otherwise they are streamed. 0 streams any.
    dataset.kept_gb = 2.0
    # Streamed images: how many examples are shuffled at once; as many are read ahead. For ImageNet about 0.2
    # MB of memory each.
    dataset.shuffle_buffer = 16_384
    return dataset


def teacher_config():
    """The options of the teacher."""
    teacher = ml_collections.ConfigDict()
    # Workdir of a finished supervised run to use as the teacher; '' trains one under WORKDIR/teacher.
    teacher.checkpoint = ''
    # A public checkpoint to use as the teacher, instead of one trained here: an .npz of
    # google-research/vision_transformer or of BiT (a path, gs:// or https://), a ViT, DeiT or DINOv2 of
    # Hugging Face or timm, or an EfficientNet or ResNet of timm (a folder, or hf://OWNER/NAME). It says
    # itself what teacher.model and teacher.dataset are; what is set otherwise is refused.
    teacher.pretrained = ''
    # Part of the data set that the teacher is trained on, and how it is shown images.
    teacher.dataset = task_config()
    teacher.dataset.image_size, teacher.dataset.crop_pct = 0, 0.0
    teacher.dataset.resize, teacher.dataset.crop_mode = '', ''
    teacher.model = model_config()
    teacher.optimizer = optimizer_config()
    teacher.seed = 0
    # Training steps of the teacher; 0 uses a model of your own with the parameters that it brings
    # (docs/own.md).
    teacher.num_steps = 1000
    # The teacher's inputs while the student trains: 'clean' (its states are then computed once for the whole
    # data set) or 'varied', with the random variation that the student sees.
    teacher.inputs = 'varied'
    # Varied inputs of training examples in memory: fixed views of each example, with a random variation that
    # is drawn once. The teacher's states of all views are computed once for the whole data set, and a step
    # shows both models one of them. 0 draws a new view of an example in each step. A method without a teacher
    # always does, so that with few labelled examples its data are more varied than those of a method with
    # fixed views. Without effect on data without random variation.
    teacher.views = 0
    # The number of fixed views of an example without a label, which a run shows less often; 0: teacher.views.
    teacher.unlabelled_views = 0
    # What a logits term compares: 'shared' (both models predict the same labels), 'probe' (a linear head on
    # the frozen teacher, fitted to the student's training labels before the student starts) or 'auxiliary' (a
    # second head of the student predicts the teacher's labels).
    teacher.labels = 'shared'
    # Probe: the teacher's representations of the training examples are kept in memory while it is fitted, at
    # most so many GB; more is refused.
    teacher.probe_gb = 4.0
    # Controls, to see how much of a method's gain comes from the teacher's knowledge: 'none', the teacher as
    # it is; 'untrained', with the parameters that its own training would start from, by teacher.seed;
    # 'shuffled', with states and predictions of the next example of the batch (which may be of the same
    # class) instead of this one's; 'shuffled_states', with the next one's states and this one's predictions,
    # which leaves a logits term unchanged. Its layers in an interaction stay as they are.
    teacher.control = 'none'
    return teacher


def add_one_way_methods(config):
    """The options of one-way methods."""
    # Weights of each method's terms, which are added to the task loss; 0 switches a term off.
    config.ld = ml_collections.ConfigDict()
    config.ld.weights = ml_collections.ConfigDict({'logits': 1.0})
    config.fd = ml_collections.ConfigDict()
    config.fd.weights = ml_collections.ConfigDict({'feature': 1.0})
    config.fitnet = ml_collections.ConfigDict()
    config.fitnet.weights = ml_collections.ConfigDict({'state': 1.0})
    config.hybrid = ml_collections.ConfigDict()
    config.hybrid.weights = ml_collections.ConfigDict({'logits': 1.0, 'feature': 1.0})

    config.rkd = ml_collections.ConfigDict()
    config.rkd.weights = ml_collections.ConfigDict({'distance': 1.0, 'angle': 1.0})
    config.crd = ml_collections.ConfigDict()
    config.crd.weights = ml_collections.ConfigDict({'contrast': 1.0})
    # What a cosine is divided by before the softmax over the batch. Projections have the width of a message.
    config.crd.temperature = 0.07
    config.srd = ml_collections.ConfigDict()
    config.srd.weights = ml_collections.ConfigDict({'projection': 1.0})
    # Power of the differences that are summed; the paper's is 4.
    config.srd.alpha = 4.0
    # The paper's alpha and beta.
    config.dkd = ml_collections.ConfigDict()
    config.dkd.weights = ml_collections.ConfigDict({'target': 1.0, 'others': 8.0})
    # Logits are divided by it, and the terms multiplied by its square; so in dist.
    config.dkd.temperature = 4.0
    # The paper's beta and gamma.
    config.dist = ml_collections.ConfigDict()
    config.dist.weights = ml_collections.ConfigDict({'inter': 1.0, 'intra': 1.0})
    config.dist.temperature = 1.0


def add_batches(config):
    """The options of how much is computed at once."""
    # Examples per training step.
    config.batch_size = 256
    # Examples without labels per training step, in addition to those (dataset.unlabelled); 0 is batch_size.
    config.unlabelled_batch_size = 0
    # Parts of a batch that are computed one after the other, with their gradients summed. Changes memory and
    # dropout; results change only for terms that relate the examples of a batch to each other, which then see
    # one part at a time: rkd, crd, srd, dist and td.scale.
    config.micro_batches = 1
    # The type of matrix products: 'float32' on every device, on a TPU in six passes, on a GPU without TF32;
    # or 'bfloat16', which is up to six times as fast there. Parameters, statistics, softmax, losses and
    # metrics are float32 in any case.
    config.compute_dtype = 'float32'
    # Examples per evaluation step; changes memory and speed, never the result.
    config.eval_batch_size = 1024


def get_config():
    """Returns a ConfigDict with every option at its default."""
    config = ml_collections.ConfigDict()

    # How the student is trained, a name of td_jax.method.objectives.METHODS: supervised (no distillation),
    # ld, fd, fitnet, hybrid, td, rkd, crd or srd; only for classification: dkd or dist.
    config.method = 'td'
    # What is trained; it is part of every random number: 'student', or 'teacher', which the run of a config's
    # teacher has, so that a student and a teacher of the same seed have nothing in common. Set it for a run
    # of your own that is to be a teacher.checkpoint.
    config.role = 'student'
    # The rules by which a run draws its random numbers (docs/decisions.md). Do not set it: a run uses the
    # rules of today. A run of an earlier version has a lower number; it is read, but not continued.
    config.protocol = 2
    # The first seed; student i of num_seeds uses seed + i * seed_step for its initial parameters, data order
    # and noise.
    config.seed = 0
    # Students trained together, which differ only in their seeds.
    config.num_seeds = 1
    # Step from one seed to the next: with 5, for example, seeds 2 and 7 are in one run, and the others are
    # left to other runs.
    config.seed_step = 1
    # Training steps of the student.
    config.num_steps = 1000
    add_batches(config)
    # Steps between two evaluations on the validation slice; the test split is read once, at the end.
    config.eval_every = 100
    # Which parameters a finished run keeps for its result, exports and predictions: those of the 'last' step,
    # or those of the step with the 'best' validation metric (dataset.split=validation), a copy of which is
    # then in every checkpoint, too. With several seeds, it is the step with the best mean over them, one step
    # for all. A teacher that is trained for a run keeps its last step, whatever this and patience are.
    config.keep = 'last'
    # Validations in a row without improvement (of the same mean) after which training ends before num_steps;
    # 0 trains all steps. Validations before the end of td.ramp_up do not count.
    config.patience = 0
    # Steps between two lines in metrics.jsonl; a checkpoint and an evaluation end a line, too. The values are
    # means over the steps since the previous line.
    config.log_every = 100
    # Whether such a line, every log_every steps, before the first and after the last, also has diagnostics of
    # one batch: each term's share of the gradient on the student, and standard deviation and effective rank
    # of messages and states. Does not affect training, and takes a few steps' time.
    config.diagnostics = True
    # Steps between two checkpoints; the last step always has one.
    config.save_every = 500

    # Trackers that get the values of metrics.jsonl, too: a project of Weights & Biases, an experiment of
    # MLflow; '' leaves a tracker out. Their own environment variables, such as WANDB_MODE and
    # MLFLOW_TRACKING_URI, name accounts and servers (docs/running.md).
    config.tracking = ml_collections.ConfigDict()
    config.tracking.wandb = ''
    config.tracking.mlflow = ''

    # The devices, as a grid of data by fsdp; -1 is what the other leaves. Batches are split over both, the
    # parameters and the optimizer state over fsdp only.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1

    config.dataset = dataset_config()

    # The student.
    config.model = model_config()
    config.optimizer = optimizer_config()

    config.teacher = teacher_config()

    config.communication = ml_collections.ConfigDict()
    # Width of the hidden layer of every encoder and decoder.
    config.communication.hidden = 256
    # Width of a message.
    config.communication.message = 128
    # Dropout rate after that hidden layer while training.
    config.communication.dropout = 0.0
    # If the models' states have different shapes: the grid of a message, which is that of the lower state of
    # the 'student' or of the 'teacher', or a number of rows and columns, '7'. States are resized to it.
    config.communication.grid = 'student'
    # What the parts s and e of a state are divided by wherever communication reads or compares them: 'none',
    # or 'data', for each part of each model its own standard deviation over up to 1,024 training examples,
    # measured before the first step and then fixed. With 'none', a part that varies little hardly counts in
    # distances of states and in messages.
    config.communication.state_scale = 'none'

    # How a logits term measures distance: 'l2', or 'kl' (classification only) at a temperature, its
    # value multiplied by the temperature squared.
    config.logits = ml_collections.ConfigDict()
    config.logits.distance = 'l2'
    config.logits.temperature = 1.0

    add_one_way_methods(config)

    config.td = ml_collections.ConfigDict()
    config.td.weights = ml_collections.ConfigDict(
        {'interact': 1.0, 'message': 1.0, 'state': 1.0, 'logits': 0.0}
    )
    # Rounds of interaction; 0 leaves the interaction term out.
    config.td.rounds = 1
    # What a round's decoded states are compared with: the student's 'running' states, as in Algorithm 1, or
    # its 'original' ones.
    config.td.reference = 'running'
    # What each distance is divided by: 'none', or the 'variance' of its target over the batch, without a
    # gradient, so that a weight has the same meaning for every model. Targets are the teacher's message, the
    # states that are decoded, and the state that a round is compared with.
    config.td.scale = 'none'
    # Whether the gradient through these targets is stopped, so that nothing they depend on moves towards the
    # prediction.
    config.td.stop_target = False
    # Standard deviation of the Gaussian noise on what the teacher decodes, before it interprets it.
    config.td.noise_std = 0.0
    # What the forward pass saves of a round for the gradient, as in model.remat_policy; takes effect from
    # three rounds on.
    config.td.remat_policy = 'dots_saveable'
    # Steps that train the student alone, then steps that train only the communication modules, before
    # everything is trained together; both count towards num_steps.
    config.td.ramp_up = (0, 0)
    # Steps over which the weights of all terms rise linearly from 0, after the student was trained alone.
    config.td.warmup_steps = 0

    # Options of what a caller of td_jax.train adds, under its name; for a method own.NAME.weights, a weight
    # for each of its terms (docs/own.md). Empty by default.
    config.own = ml_collections.ConfigDict()

    return config
